"""Build megatron-core's GPTModel with our adapters for every case, count what it runs, print one JSON object."""

from __future__ import annotations

import json
from typing import Any

import torch

from oracle import count_megatron

from bridge.config import Config, ModelConfig, PeftConfig  # isort: skip
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from bridge.flops import compile_plan
from bridge.training.peft import add_adapters
from bridge.training.trainable import trainable_from
from oracle.fine_tuning_cases import FineTuning, cases
from oracle.megatron_cases import Case


def measure(case: FineTuning) -> dict[str, Any]:
    """What a case counts, and what the plan says when it reads from the model what trains."""
    plain = Case(case.name, case.model, case.batch_size, case.length)
    model, peft = count_megatron.build(plain), PeftConfig(**case.peft)
    add_adapters(model, peft)
    found: dict[str, Any] = count_megatron.measure(plain, model)
    config = Config(model=ModelConfig(**case.model, make_vocab_size_divisible_by=1), peft=peft)
    plan = compile_plan(config, convention="executed", trainable=trainable_from(model))
    found["flops_by_requires_grad"] = plan.flops([case.length] * case.batch_size)
    found["trainable_by_requires_grad"] = plan.parameters()["trainable"]
    return found


def main() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    model_parallel_cuda_manual_seed(1)
    results: dict[str, Any] = {}
    for case in cases():
        try:
            results[case.name] = measure(case)
        except Exception as error:  # the test of this case reports it, the others go on
            results[case.name] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
