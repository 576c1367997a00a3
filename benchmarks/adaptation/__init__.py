"""Ways to adapt a model to each task and predict it, for ttft.py to compare."""
