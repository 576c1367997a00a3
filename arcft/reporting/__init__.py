"""What people look at: the report of an evaluation, curves over training, and previews in the terminal."""
