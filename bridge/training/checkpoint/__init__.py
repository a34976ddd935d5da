"""Checkpoints: their files (``folder``), the parts of tensors (``sharding``), writing and reading on all ranks (``store``)."""
