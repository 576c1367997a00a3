"""Every option as a keyword-only dataclass, one file a group. No third-party import: a config can be
validated on a bare Python. Each class lists in `problems` what its values break, with the remedy."""
