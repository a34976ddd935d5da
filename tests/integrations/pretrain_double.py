"""A training script as Megatron-LM's are: of core 0.16 where its ``pretrain`` reads the flags, else of 0.19 and later."""

from megatron.training import arguments, pretrain, training
from megatron_worker import forward_step

if __name__ == "__main__":
    if training.OLD:
        pretrain(training.JOB.datasets, None, "encoder_or_decoder", forward_step, args_defaults={})
    else:
        args = arguments.parse_and_validate_args(args_defaults={})
        pretrain(args, training.JOB.datasets, "encoder_or_decoder", forward_step, store=None)
