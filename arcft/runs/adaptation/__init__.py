"""One run of test-time fine-tuning."""
