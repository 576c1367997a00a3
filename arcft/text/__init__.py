"""From grids to token ids: encoders, prompts, tokens, examples."""
