"""A single run from start to end."""
