"""Other people's training loops: the throughput callback in them, one thin adapter a file; none imports another's framework.

``megatron_bridge``       Megatron-Bridge's ``pretrain``
``megatron_bridge_flops`` what Megatron-Bridge's own loop asks of its ``flop_utils``
``megatron_lm``           a Megatron-LM training script
``transformers_trainer``  Hugging Face's ``Trainer``
``lightning_trainer``     Lightning's ``Trainer``
"""
