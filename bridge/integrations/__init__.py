"""The throughput callback in other training loops: one thin adapter per file, which imports only its own framework.

``catalogue``             the adapter for each framework, with the lines to paste
``megatron_lm``           Megatron-LM's scripts, as they are
``megatron_bridge``       Megatron-Bridge's ``pretrain``
``megatron_bridge_flops`` the functions that Megatron-Bridge's own loop calls in its ``flop_utils``
``transformers_trainer``  Hugging Face's ``Trainer``, and TRL's
``accelerate_loop``       a loop around accelerate's ``Accelerator``
``deepspeed_engine``      DeepSpeed's engine
``lightning_trainer``     Lightning's ``Trainer``
``torchtitan_trainer``    torchtitan's ``Trainer``
``composer_trainer``      Composer's ``Trainer``
``verl_flops``            verl's counter
``plain``                 your own loop
and shared parts: ``wrapping`` (events for a loop that has none), ``sidecar`` (totals beside checkpoints that cannot hold them),
``host_loggers`` (a loop's own loggers as a tracker), ``trl_phases`` and ``trl_head`` (TRL's passes without gradients, and its
fused output layer)
"""
