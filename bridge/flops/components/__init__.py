"""One architecture block per file: a formula (keyword integers in, terms out; no configuration, no batch) and its row."""
