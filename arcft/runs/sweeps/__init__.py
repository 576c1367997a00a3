"""Runs and sweeps as their folders tell them: what was made, what is missing, and how to complete it."""
