"""From prompts to completions. Knows tokens only."""
