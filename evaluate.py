"""Predict, vote, score, report: `python evaluate.py --help` shows every option."""

from arcft.cli.program import evaluate

if __name__ == "__main__":
    evaluate()
