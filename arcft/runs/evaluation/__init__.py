"""The parts of one evaluation run."""
