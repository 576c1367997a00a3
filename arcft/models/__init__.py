"""Models: loading a base model and its tokenizer, and the adapters on it. Knows tokens, no grids."""
