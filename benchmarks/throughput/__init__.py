"""Parts of benchmarks/training.py: the setups, the data they share, and the processes that take turns."""
