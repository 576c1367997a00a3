"""From problems to predictions: prompts, completions, parsed answers and their scores."""
