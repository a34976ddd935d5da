"""One file per tab: its controls by group (``SECTIONS``), and ``view``, a pure function from their values to a view."""
