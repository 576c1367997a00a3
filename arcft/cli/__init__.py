"""The console programs: one file a command, and the one place where errors become messages."""
