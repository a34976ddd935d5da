"""Turns real text into micro-batches, the same on every parallel layout; statistics of packed files."""
