"""The SQLite record of a TTFT run, which survives a kill."""
