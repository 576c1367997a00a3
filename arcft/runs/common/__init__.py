"""What all runs share: paths, signals, progress."""
