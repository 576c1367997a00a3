"""Adapts and predicts the units in its slots."""
