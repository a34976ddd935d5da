"""One architecture block a file: keyword integers in, terms out.  No configuration, no batch, no convention."""
