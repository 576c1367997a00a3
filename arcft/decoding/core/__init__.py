"""What every way of decoding shares: batches, forward passes, cache, drafts."""
