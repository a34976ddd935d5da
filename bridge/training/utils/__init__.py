"""The public interface with Megatron-Bridge's names, at the same places."""
