"""What the server of ranks imports before it forks them (see launch.py)."""

import gc
import os

# As bridge.training.engine.initialize says; the redirect to the CPU is each rank's own.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import megatron.core.models.gpt.gpt_model  # noqa: F401
import torch.distributed.checkpoint  # noqa: F401

import bridge.training.loop  # noqa: F401

gc.freeze()  # what is imported stays: the ranks' collections need not go through it
