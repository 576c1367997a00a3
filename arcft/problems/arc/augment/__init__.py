"""Transforms of tasks: symmetries, colours, orders, compositions."""
