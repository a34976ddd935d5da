"""The throughput callback in other training loops: one thin adapter per file; none imports another's framework.

``catalogue``             which adapter serves which framework, with the lines to paste
``megatron_lm``           Megatron-LM's scripts, as they are
``megatron_bridge``       Megatron-Bridge's ``pretrain``
``megatron_bridge_flops`` what Megatron-Bridge's own loop asks of its ``flop_utils``
``transformers_trainer``  Hugging Face's ``Trainer``, and TRL's
``accelerate_loop``       a loop around accelerate's ``Accelerator``
``deepspeed_engine``      DeepSpeed's engine
``lightning_trainer``     Lightning's ``Trainer``
``torchtitan_trainer``    torchtitan's ``Trainer``
``composer_trainer``      Composer's ``Trainer``
``verl_flops``            verl's counter
``plain``                 your own loop
and what they share: ``wrapping`` (events of a loop that has none), ``sidecar`` (totals beside checkpoints that have no
place for them), ``trl_phases`` (what TRL runs without gradients)
"""
