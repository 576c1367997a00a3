"""Pictures of problems with their predictions, as PNG."""
