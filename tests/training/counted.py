"""What a training of so many steps must have counted, summed document by document in this process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from bridge.config import load_recipe
from bridge.data.loader import TextData
from bridge.data.schedule import MicroBatchSampler
from bridge.flops import compile_plan


def totals(overrides: Sequence[str], steps: int, recipe: str = "tiny") -> dict[str, int]:
    """FLOPs and tokens of the first steps of a recipe, as in its last row of metrics."""
    cfg = load_recipe(recipe, overrides)
    data, plan = TextData(cfg), compile_plan(cfg, convention="megatron")
    sampler = MicroBatchSampler(data.schedule, micro_batch_size=cfg.train.global_batch_size, data_rank=0, data_size=1)
    samples = itertools.chain.from_iterable(itertools.islice(sampler, steps))
    lengths = [len(inputs) for index in samples for inputs, _ in data.training[index]]
    return {
        "throughput/total_flops": sum(plan.flops(sequence_lengths=[length]) for length in lengths),
        "throughput/total_tokens": sum(lengths),
    }
