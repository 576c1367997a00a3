"""Fine-tune a model on ARC tasks: `python train.py --help` shows every option."""

from arcft.cli.train import main

if __name__ == "__main__":
    main()
