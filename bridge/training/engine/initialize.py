"""Sets up process groups, device and random numbers for megatron-core from torchrun's environment."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bridge.training.job import restart
from bridge.training.state import Groups

if TYPE_CHECKING:
    from bridge.config.schema import Config


@dataclass(frozen=True)
class Launch:
    """The place of this process according to torchrun's environment variables; without them it is the only one."""

    rank: int
    world_size: int
    local_rank: int
    rendezvous: bool
    """Whether there is an address where the processes meet; a single process needs none."""

    @classmethod
    def from_environment(cls) -> Launch:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR."""
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            rendezvous="MASTER_ADDR" in os.environ and "RANK" in os.environ,
        )


def prepare_libraries() -> None:
    """Apply the settings that must precede the import of megatron-core, and the CPU redirect if there is no GPU."""
    if not torch.cuda.is_available():
        # megatron-core compiles small functions with torch.compile: a gain on a GPU, minutes of start-up on a CPU.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Notes on optional packages that are not installed; what is used instead is megatron-core's own code.
    for module in ("megatron", "transformer_engine", "torch.distributed"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
    # The optimizer looks at gradients of parameters that are views; torch's checkpoints still use ShardedTensor.
    for text in ("The .grad attribute of a Tensor that is not a leaf", "Please use DTensor instead"):
        warnings.filterwarnings("ignore", message=text)
    logging.getLogger("megatron").setLevel(logging.ERROR)

    from bridge.training.engine import missing_names, redirect

    with _without_compiler():
        redirect.install()
        missing_names.define()


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Replace torch.compile while megatron-core is imported: its decorators load the compiler, for a second, even if disabled."""
    library: Any = torch
    original = library.compile
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        library.compile = lambda function=None, **_: function or (lambda decorated: decorated)
    try:
        yield
    finally:
        library.compile = original


def initialize(cfg: Config, launch: Launch) -> tuple[Groups, torch.device]:
    """Join the job: process group (NCCL on GPUs, gloo otherwise), megatron-core's groups, seeds.

    The layout must have been validated against the world size before.
    """
    from megatron.core import parallel_state

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", launch.local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    timeout = timedelta(minutes=cfg.train.distributed_timeout_minutes)
    if not torch.distributed.is_initialized():
        _join(launch, device, timeout)
    parallel = cfg.parallel
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        expert_model_parallel_size=parallel.expert_model_parallel_size,
        expert_tensor_parallel_size=parallel.expert_tensor_parallel_size,
        distributed_timeout_minutes=cfg.train.distributed_timeout_minutes,
        create_gloo_process_groups=False,
    )
    groups = Groups.from_parallel_state(local_rank=launch.local_rank)
    seed_everything(cfg.train.seed, groups)
    return groups, device


def _join(launch: Launch, device: torch.device, timeout: timedelta) -> None:
    cuda = device.type == "cuda"
    options: dict[str, Any] = {"timeout": timeout, "device_id": device if cuda else None}
    if not launch.rendezvous:
        options = {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}
    elif restart.needs_own_store():
        store = restart.own_store(launch.rank, launch.world_size, timeout)
        options |= {"store": store, "rank": launch.rank, "world_size": launch.world_size}
    torch.distributed.init_process_group("nccl" if cuda else "gloo", **options)


def seed_everything(seed: int, groups: Groups) -> None:
    """Seed by Megatron-LM's rule: pipeline stages differ, replicas agree, tensor and expert ranks differ where they must."""
    from megatron.core import tensor_parallel

    seed += 100 * groups.pipeline_rank
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def shut_down(*, leave: bool) -> None:
    """Undo :func:`initialize`; ``leave`` also leaves the process group."""
    from megatron.core.transformer.moe import moe_utils

    leave_groups()
    # A process-wide list of auxiliary losses, one entry per layer: it would not fit the next model.
    moe_utils.get_moe_layer_wise_logging_tracker().clear()
    if leave and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave_groups() -> None:
    """Undo ``parallel_state.initialize_model_parallel`` and destroy its groups, which megatron-core alone would not do.

    A gloo group polls with three threads, so a process that trains repeatedly would slow down with every training.
    """
    from megatron.core import parallel_state

    known = (group for value in vars(parallel_state).values() for group in (value if isinstance(value, list) else (value,)))
    made = {group for group in known if isinstance(group, torch.distributed.ProcessGroup)} - {torch.distributed.group.WORLD}
    parallel_state.destroy_model_parallel()
    for group in made:
        with contextlib.suppress(ValueError):  # left already: some of megatron-core's lists are never emptied
            torch.distributed.destroy_process_group(group)
