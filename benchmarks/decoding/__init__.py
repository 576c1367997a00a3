"""The parts of benchmarks/decode.py: models, tasks, reference and measurements."""
