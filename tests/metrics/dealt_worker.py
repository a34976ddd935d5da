"""One rank of ``test_dealt.py``: megatron-core deals packed samples out to ranks, and runs its schedule over them.

Arguments: a folder, then layouts as ``tensor,context``; what is left over is data parallel.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridge.training.engine.initialize import Launch, _join, prepare_libraries

prepare_libraries()

import datetime  # noqa: E402
import random  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.datasets.data_schedule import HybridCPDataLoaderWrapper  # noqa: E402
from megatron.core.enums import ModelType  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402
from megatron.core.utils import get_batch_on_this_hybrid_cp_rank  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "training" / "callbacks"))
import callback_driver as driver  # noqa: E402

from bridge.integrations.megatron_bridge import counted  # noqa: E402
from bridge.training.callbacks import ThroughputCallback  # noqa: E402

STEPS, LONGEST = 3, 32


def lengths_of(replica: int, step: int) -> list[list[int]]:
    """Of the sequences of two packed samples: multiples of 16, up to twice what one rank takes."""
    numbers = random.Random(10 * replica + step)
    return [[16 * numbers.randint(1, 4) for _ in range(numbers.randint(2, 4))] for _ in range(2)]


def packed(lengths: list[int]) -> dict[str, torch.Tensor]:
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    return {"tokens": torch.arange(int(offsets[-1])) % 7, "cu_seqlens": offsets}


def data(replica: int) -> Iterator[list[dict[str, torch.Tensor]]]:
    for step in range(STEPS):
        yield [packed(lengths) for lengths in lengths_of(replica, step)]


class Model(torch.nn.Module):
    """Counts the positions that it ran; ``config`` is what schedules read."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.model_type = config, ModelType.encoder_or_decoder
        self.table = torch.nn.Embedding(7, 1)
        self.positions = 0

    def set_input_tensor(self, tensor: Any) -> None:
        """There is one stage."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.positions += tokens.numel()
        return self.table(tokens).sum()


def forward_step(data_iterator: Any, model: Model) -> Any:
    tokens = torch.zeros(1, 0, dtype=torch.int64)  # a tensor rank that gets its data from another one
    if data_iterator is not None:
        sample = next(data_iterator)
        size = int(sample.pop("local_cp_size"))
        tokens = get_batch_on_this_hybrid_cp_rank(sample, size)[0]["tokens"]
    return model(tokens), lambda output: (output, {})


def run(tensor: int, context: int) -> dict[str, Any]:
    parallel_state.initialize_model_parallel(
        tensor, context_parallel_size=context, hybrid_context_parallel=True, create_gloo_process_groups=False
    )
    config = TransformerConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=2,
        context_parallel_size=context,
        tensor_model_parallel_size=tensor,
        hybrid_context_parallel=True,
        max_seqlen_per_dp_cp_rank=LONGEST,
    )
    names = ("dealt", "before", "steps", "other")
    callbacks = {
        name: ThroughputCallback("exact", log_interval=STEPS, peak_flops=1e15, compute_time=1 if name == "dealt" else False)
        for name in names
    }
    cfg = driver.config(STEPS, hybrid_context_parallel=True)
    loops = [driver.Loop([callback], driver.state(cfg), None).start() for callback in callbacks.values()]
    inner = data(parallel_state.get_data_parallel_rank()) if not parallel_state.get_tensor_model_parallel_rank() else None
    given = callbacks["dealt"].observe(HybridCPDataLoaderWrapper(callbacks["before"].observe(inner), config))
    schedule, step = get_forward_backward_func(), counted(forward_step, callbacks["steps"])
    other = callbacks["other"].observe(iter(driver.fixed([16, 16]) for _ in range(STEPS)))
    model = Model(config)
    for _ in range(STEPS):
        for loop in loops:
            loop.fire("on_train_step_start")
        schedule(
            forward_step_func=step,
            data_iterator=given,
            model=[model],
            num_microbatches=1,
            seq_length=LONGEST,
            micro_batch_size=1,
            forward_only=False,
        )
        next(other)
        for loop in loops:
            loop.fire("on_train_step_end", loss_dict={}, grad_norm=1.0, skipped_iter=False)
            loop.state.train_state.step += 1
    for loop in loops:
        loop.end()
    replicas = parallel_state.get_data_parallel_world_size()
    parallel_state.destroy_model_parallel()
    return {
        "rows": {name: callback.latest for name, callback in callbacks.items()},
        "positions": model.positions,
        "lengths": [row for replica in range(replicas) for step in range(STEPS) for row in lengths_of(replica, step)],
    }


def main(folder: str, *layouts: str) -> None:
    launch = Launch.from_environment()
    _join(launch, torch.device("cpu"), datetime.timedelta(minutes=2))
    found = {layout: run(*map(int, layout.split(","))) for layout in layouts}
    Path(folder, f"{launch.rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
