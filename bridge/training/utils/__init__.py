"""The public face for those who know Megatron-Bridge: the same names at the same places."""
