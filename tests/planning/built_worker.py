"""Builds megatron-core models on many layouts and takes one step of each: torchrun built_worker.py CASES RESULTS.

For every case: what each rank holds, and what its collectives carried, by the group that they ran in.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from bridge.training.engine.initialize import Launch, initialize, prepare_libraries, shut_down

prepare_libraries()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from built_cases import config  # noqa: E402
from megatron.core import parallel_state as groups  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from bridge.config import Config  # noqa: E402
from bridge.training.engine.model import build_model  # noqa: E402
from bridge.training.engine.optimizer import build_optimizer, build_scheduler  # noqa: E402
from bridge.training.job.agree import gather  # noqa: E402
from bridge.training.step import Stepper  # noqa: E402

#: torch's names of collectives.
OPERATIONS = {
    **dict.fromkeys(("allreduce", "allreduce_coalesced"), "all_reduce"),
    **dict.fromkeys(("allgather", "allgather_base", "allgather_into_tensor_coalesced"), "all_gather"),
    **dict.fromkeys(("reduce_scatter", "reduce_scatter_base", "reduce_scatter_tensor_coalesced"), "reduce_scatter"),
    "alltoall_base": "all_to_all",
    "broadcast": "broadcast",
    "send": "send",
    "recv": "recv",
}
#: Dimension -> megatron-core's group.
GROUPS = {
    "tensor": "get_tensor_model_parallel_group",
    "context": "get_context_parallel_group",
    "expert": "get_expert_model_parallel_group",
    "expert tensor": "get_expert_tensor_parallel_group",
    "expert tensor and model": "get_expert_tensor_and_model_parallel_group",
    "data of experts": "get_expert_data_parallel_group",
    "pipeline": "get_pipeline_model_parallel_group",
    "pipeline's ends": "get_embedding_group",
}


class Collectives(TorchDispatchMode):
    """Bytes of every collective of more than one rank, by dimension and operation: the larger of what goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = defaultdict(int)
        found = {name: getattr(groups, getter)(check_initialized=False) for name, getter in GROUPS.items()}
        found["data"] = groups.get_data_parallel_group(with_context_parallel=True)
        self.names = {group.group_name: name for name, group in found.items() if group is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.startswith("c10d::"):
            group = next(dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject) and _is_group(arg))
            called = func._schema.name.removeprefix("c10d::").strip("_")
            operation = OPERATIONS.get(called, called)
            tensors = [[leaf for leaf in tree_leaves(arg) if torch.is_tensor(leaf)] for arg in args]
            if operation == "all_to_all":  # experts send and receive different amounts: what is sent
                tensors = tensors[1:]
            # Single numbers (tokens of the batch, norms, losses) are no load.
            if group.size() > 1 and sum(leaf.numel() for one in tensors for leaf in one) > 1:
                # The interleaved schedule receives in the group of all ranks.
                name = "pipeline" if operation in ("send", "recv") else self.names.get(group.group_name, "other")
                self.bytes[f"{name}/{operation}"] += max(
                    sum(leaf.numel() * leaf.element_size() for leaf in one) for one in tensors
                )
        return func(*args, **(kwargs or {}))


def _is_group(value: torch.ScriptObject) -> bool:
    return "ProcessGroup" in str(value._type())


def batches(cfg: Config) -> Any:
    """Micro-batches of random tokens, without padding."""
    shape = cfg.train.micro_batch_size, cfg.model.seq_length
    generator = torch.Generator().manual_seed(groups.get_data_parallel_rank())
    while True:
        tokens = torch.randint(cfg.model.vocab_size, shape, generator=generator)
        yield {
            "tokens": tokens,
            "labels": tokens.roll(-1, 1),
            "loss_mask": torch.ones(shape),
            "padding_mask": torch.zeros(shape, dtype=torch.bool),
            "position_ids": torch.arange(shape[1]).expand(shape).contiguous(),
        }


def run(case: dict[str, Any]) -> dict[str, Any]:
    cfg = config(case)
    places, device = initialize(cfg, Launch.from_environment())
    model = build_model(cfg, device)
    optimizer = build_optimizer(cfg, model)
    stepper = Stepper(cfg, model, optimizer, build_scheduler(cfg, optimizer), places, device)
    data = [batches(cfg) for _ in model] if len(model) > 1 else batches(cfg)
    count = cfg.train.global_batch_size // (cfg.train.micro_batch_size * places.data_size)
    with Collectives() as carried:
        stepper.train(data, count)
    result = {"held": held(model, optimizer), "bytes": carried.bytes}
    shut_down(leave=False)
    return result


def held(model: list[Any], optimizer: Any) -> dict[str, int]:
    """Bytes of what a rank holds after a step, each stretch of memory once."""
    weights = {storage(parameter): size(parameter) for chunk in model for parameter in chunk.parameters()}
    gradients = {storage(buffer.grad_data): size(buffer.grad_data)
                 for chunk in model for buffer in chunk.buffers + chunk.expert_parallel_buffers}  # fmt: skip
    states: dict[int, int] = {}
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = getattr(one, "optimizer", None)
        if inner is None:
            continue
        for parameter, values in inner.state.items():
            states[storage(parameter)] = size(parameter)
            # torch's Adam counts its steps in a tensor of four bytes a parameter, which Apex and Transformer Engine do not have.
            states |= {storage(value): size(value) for name, value in values.items() if torch.is_tensor(value) and name != "step"}
    return {
        "weights": sum(weights.values()),
        "gradients": sum(gradients.values()),
        "optimizer": sum(bytes for key, bytes in states.items() if key not in weights),
    }


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def size(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def main(cases: Path, results: Path) -> None:
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for name, case in json.loads(cases.read_text()).items():
        try:
            mine: Any = run(case)
        except Exception as error:
            if not case.get("may_fail"):
                raise
            mine = repr(error)
            shut_down(leave=False)
        found[name] = gather(mine)
    if dist.get_rank() == 0:
        results.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
