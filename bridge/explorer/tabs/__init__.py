"""One tab a file: what can be set (``CONTROLS``) and a pure function from it to a view."""
