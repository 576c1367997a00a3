"""The console programs: one file per command, and the one place where errors become messages."""
