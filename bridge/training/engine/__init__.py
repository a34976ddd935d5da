"""What megatron-core needs from us: models, optimizers, attention and norms that run on any device."""
