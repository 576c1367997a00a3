"""ARC's metrics, submission file and verifier."""
