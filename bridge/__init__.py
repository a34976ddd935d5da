"""Exact FLOPs and MFU accounting for Megatron-style training."""

__version__ = "0.1.0"
