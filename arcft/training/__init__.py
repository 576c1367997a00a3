"""Training: batches of examples in, checkpoints out. Knows token ids and labels, no grids."""
