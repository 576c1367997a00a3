"""The parts of an export: checks, what is written, the model card, the upload."""
