"""arcft: fine-tune small language models on ARC grid tasks, and again on each test task."""

__version__ = "0.1.0"
