"""What predictions are worth: reading and writing them, voting, metrics, submission files. Numpy only."""
