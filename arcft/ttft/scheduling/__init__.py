"""Which unit runs next, and for how long."""
