"""Real text and how it becomes micro-batches."""
