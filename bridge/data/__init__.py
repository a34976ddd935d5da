"""Real text and how it becomes micro-batches, the same on every parallel layout; statistics of packed files."""
