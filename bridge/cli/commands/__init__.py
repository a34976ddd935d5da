"""One command per file; ``parser.py`` imports the one that was chosen."""
