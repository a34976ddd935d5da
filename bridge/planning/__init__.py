"""Applications of plans: inference, caches, ledgers, memory, layouts, training runs, and the origin of a number."""
