"""What benchmarks/decode.py compares, and how it is measured."""
