"""What asks a plan instead of counting: inference, caches, ledgers, training runs, where a number comes from."""
