"""Predict, vote, score, report: `python evaluate.py --help` shows every option."""

from arcft.cli.evaluate import main

if __name__ == "__main__":
    main()
