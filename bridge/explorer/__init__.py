"""The interactive page: `bridge explore`.

Every tab declares its inputs (``controls``) and has a pure function from their values to a ``View`` of numbers, figures and a
table.  Only ``page`` and ``door`` use the web framework.
"""
