"""Fine-tune a model on ARC tasks: `python train.py --help` shows every option."""

from arcft.cli.program import train

if __name__ == "__main__":
    train()
