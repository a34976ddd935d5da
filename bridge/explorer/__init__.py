"""The interactive page: `bridge explore`.

Every tab is a declaration of its inputs (``controls``) and a pure function from their values to a ``View`` of numbers,
figures and a table.  Only ``page`` knows the web framework.
"""
