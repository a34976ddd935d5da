"""The training loop on megatron-core: set-up, model, step, checkpoints and callbacks."""
