"""`python -m arcft`: the program `arcft` without its console script."""

from arcft.cli.program import main

if __name__ == "__main__":
    main()
