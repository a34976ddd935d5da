"""One architecture block a file: a formula (keyword integers in, terms out; no configuration, no batch) and its row."""
