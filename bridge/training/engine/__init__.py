"""What megatron-core is given: its modules on any device, and the work they do."""
