"""ARC: grids, tasks, where they come from, how they are varied, written, scored and drawn."""
