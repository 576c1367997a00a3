"""Test-time fine-tuning: a queue of tasks, engines that adapt and predict, and a ledger that forgets nothing."""
