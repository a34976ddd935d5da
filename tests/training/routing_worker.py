"""Experts as they were routed: each case on real megatron-core, counted while it runs; the last rank prints what it found.

Arguments: tensor, expert and pipeline parallel sizes.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import torch

from bridge.training.engine.initialize import Launch, initialize, prepare_libraries

prepare_libraries()

sys.path.insert(0, "tests")
from megatron.core import parallel_state  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.transformer.moe.router import TopKRouter  # noqa: E402
from oracle.counter import count  # noqa: E402
from routing_cases import CASES, LENGTH, MICRO_BATCHES, MODEL  # noqa: E402

from bridge.config import Config  # noqa: E402
from bridge.config.schema import DataConfig, ModelConfig, ParallelConfig  # noqa: E402
from bridge.flops import compile_plan  # noqa: E402
from bridge.flops.routed import bound, expert_layers, routed  # noqa: E402
from bridge.training.engine.model import build_model  # noqa: E402
from bridge.training.routing import Routing  # noqa: E402


def skewed(router: TopKRouter) -> None:
    """Every token asks for the first two experts, and surely: the other weights are exactly zero."""
    gating = router.gating
    ahead = torch.tensor([200.0, 100.0, -100.0, -200.0])
    router.gating = lambda x: gating(x) * 0 + ahead  # type: ignore[method-assign]


def total(number: int) -> int:
    """Over all ranks."""
    summed = torch.tensor(number, dtype=torch.int64)
    torch.distributed.all_reduce(summed)
    return int(summed)


def measure(options: dict[str, Any], tensor: int, experts: int, pipeline: int) -> dict[str, Any]:
    options = dict(options)
    skew = options.pop("skew", False)
    parallel = ParallelConfig(
        tensor_model_parallel_size=tensor,
        expert_model_parallel_size=experts,
        expert_tensor_parallel_size=1,
        pipeline_model_parallel_size=pipeline,
        sequence_parallel=tensor > 1,
    )
    cfg = Config(model=ModelConfig(**{**MODEL, **options}), parallel=parallel, data=DataConfig(batching="fixed"))
    (chunk,) = build_model(cfg, torch.device("cpu"))
    model = chunk.module
    if skew:
        for module in model.modules():
            if isinstance(module, TopKRouter):
                skewed(module)
    plan = compile_plan(cfg, "executed")
    layers = expert_layers(plan)
    routing = Routing([chunk], layers, cfg.model.num_moe_experts)
    replica = parallel_state.get_data_parallel_rank()
    tokens = torch.randint(64, (2, LENGTH), generator=torch.Generator().manual_seed(replica))
    positions = torch.arange(LENGTH)[None].expand_as(tokens)

    def loss() -> Any:
        return model(tokens, positions, None, labels=tokens).sum()

    forward = hardware = 0
    if pipeline > 1:

        def step(data: Any, stage: Any) -> Any:
            output = stage(tokens, positions, None, labels=tokens)
            return output, lambda losses: (losses.sum(), torch.tensor(1), {})

        model.train()
        schedule = partial(
            get_forward_backward_func(), forward_step_func=step, data_iterator=None, model=[model], seq_length=LENGTH,
            num_microbatches=MICRO_BATCHES, micro_batch_size=2,
        )  # fmt: skip
        hardware = count(lambda: schedule(forward_only=False))
    else:
        with torch.no_grad():  # nothing of an evaluation counts
            model.eval()(tokens, positions, None, labels=tokens)
        assert routing.take() is None
        model.train()
        for _ in range(MICRO_BATCHES):
            kept: list[Any] = []
            forward += (ran := count(lambda kept=kept: kept.append(loss())))
            hardware += ran + count(kept[0].backward)
    nothing = torch.zeros(len(layers), 4, dtype=torch.int64)  # a stage without experts
    requested, useful, rows = routing.take() or (0, nothing, nothing)
    routing.close()
    as_routed = routed(plan)
    replicas = torch.distributed.get_world_size() // tensor // pipeline
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, sorted(routing.found))
    known = dict(zip((s.name for s in plan.statistics), plan.measure([LENGTH] * 2 * replicas * MICRO_BATCHES), strict=True))
    vector = []
    for statistic in as_routed.statistics:
        if statistic.over == "routed":
            (layer,) = statistic.sizes
            amount = useful[layer].sum() if statistic.kind == "assignments" else (rows - useful)[layer].sum()
            vector.append(total(int(amount)))
        else:
            vector.append(known[statistic.name])
    one = bound(2 * LENGTH // tensor, 2, 4, cfg.model.moe_expert_capacity_factor,
                pad=cfg.model.moe_pad_expert_input_to_capacity)  # fmt: skip
    return {
        # Each layer on one stage, on as many ranks as a stage has.
        "found": sorted(sum(found, [])) == sorted([*range(len(layers))] * (len(found) // pipeline)),
        "forward": [as_routed.evaluate(vector, "forward"), total(forward)],
        "hardware": [as_routed.evaluate(vector, "hardware"), total(hardware)],
        "training": as_routed.evaluate(vector),
        "nominal": plan.evaluate(plan.measure([LENGTH] * 2 * replicas * MICRO_BATCHES)),
        "requested": total(requested),
        "useful": total(int(useful.sum())),
        "rows": total(int(rows.sum())),
        "bound": [one.rows * len(layers) * MICRO_BATCHES * replicas * tensor, one.exact],
        "loads": useful.sum(0).tolist(),
    }


def main() -> None:
    tensor, experts, pipeline = map(int, sys.argv[1:])
    parallel = ParallelConfig(
        tensor_model_parallel_size=tensor, expert_model_parallel_size=experts, expert_tensor_parallel_size=1,
        pipeline_model_parallel_size=pipeline,
    )  # fmt: skip
    initialize(Config(model=ModelConfig(**MODEL), parallel=parallel), Launch.from_environment())
    found = {}
    for name, options in CASES.items():
        if tensor > 1 and name.endswith("allgather"):
            continue
        try:
            found[name] = measure(options, tensor, experts, pipeline)
        except Exception as error:  # the test of this case reports it, the others go on
            found[name] = {"error": f"{type(error).__name__}: {error}"}
            if torch.distributed.get_world_size() > 1:
                raise
    if torch.distributed.get_rank() == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
