"""One command a file; ``parser.py`` imports the one that was chosen."""
