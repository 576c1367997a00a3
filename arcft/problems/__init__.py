"""One folder for each kind of problem. Nothing outside runs/setup/build imports from here."""
