"""ARC tasks as pictures and HTML."""
