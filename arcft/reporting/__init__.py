"""Output for people: reports of evaluations, training curves, and previews in the terminal."""
