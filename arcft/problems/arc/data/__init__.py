"""Where ARC tasks come from, and which of them are the same."""
