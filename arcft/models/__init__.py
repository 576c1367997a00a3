"""Base models, their tokenizers and adapters. Knows tokens only."""
