"""Where `python -m arcft.arc.contamination` was; see arcft.problems.arc."""
