"""One folder for each kind of problem. Only the table of runs/setup/kinds.py imports from here."""
