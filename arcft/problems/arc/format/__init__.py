"""ARC tasks as text, and text as grids."""
