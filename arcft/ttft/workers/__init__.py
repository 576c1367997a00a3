"""Engines in this process, in others, or on a Ray cluster."""
