"""The throughput callback in other people's training loops: one thin adapter a file, none imports another's framework.

``megatron_bridge``       Megatron-Bridge's ``pretrain``
``megatron_lm``           a Megatron-LM training script
``transformers_trainer``  Hugging Face's ``Trainer``
``lightning_trainer``     Lightning's ``Trainer``
"""
