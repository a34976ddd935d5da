"""Checkpoints: files (`folder`), parts of tensors (`sharding`), and all ranks writing and reading them (`store`)."""
