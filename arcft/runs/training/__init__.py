"""The parts of one training run."""
