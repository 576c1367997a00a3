"""What an ARC puzzle is: tasks, where they come from, how they are varied. NumPy only."""
