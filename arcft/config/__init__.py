"""Every option as a keyword-only dataclass, one file per group. No third-party imports: a config can be validated on a
bare Python. Each class yields its broken rules, with the fix, from `problems`."""
