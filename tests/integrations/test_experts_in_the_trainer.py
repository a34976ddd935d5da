"""The real Trainer on a small mixture of experts with Muon: its rows say how even experts were, and what the optimizer did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

import torch  # noqa: E402
from transformers import Trainer, TrainingArguments  # noqa: E402

from bridge.config import from_huggingface  # noqa: E402
from bridge.flops import compile_plan  # noqa: E402
from bridge.flops.optimizers import MatrixOptimizer  # noqa: E402
from bridge.integrations.transformers_trainer import add_throughput  # noqa: E402

STEPS, ROWS, LENGTH, EXPERTS = 4, 2, 16, 4


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_implementation="eager",
    )
    return transformers.Qwen3MoeForCausalLM(config)


@pytest.mark.usefixtures("no_measurement")
def test_a_mixture_of_experts_with_muon(tmp_path: Path) -> None:
    moe = model()
    chosen: list[torch.Tensor] = []
    for name, module in moe.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(lambda one, args: chosen.append(args[1].clone()))
    matrices = [weight for weight in moe.parameters() if weight.ndim == 2]
    muon = torch.optim.Muon(matrices, lr=1e-3, ns_steps=3)
    dataset = [{"input_ids": torch.randint(64, (LENGTH,)), "labels": torch.randint(64, (LENGTH,))} for _ in range(STEPS * ROWS)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=ROWS,
        max_steps=STEPS,
        logging_steps=2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=moe, args=arguments, train_dataset=dataset, optimizers=(muon, None))
    add_throughput(trainer, convention="exact", peak_flops=1e12)
    trainer.train()
    last = [row for row in trainer.state.log_history if "throughput/tflops" in row and row["step"] == STEPS][0]
    # The last two steps: two layers each.
    layers = [torch.cat([chosen[4 + layer], chosen[6 + layer]]).flatten().bincount(minlength=EXPERTS) for layer in range(2)]
    ratios = [float(loads.max()) * EXPERTS / (2 * 2 * ROWS * LENGTH) for loads in layers]
    assert [last[f"throughput/imbalance/experts/layer_{layer}"] for layer in range(2)] == ratios
    assert last["throughput/imbalance/experts"] == max(ratios)
    assert last["throughput/dropped_tokens_fraction"] == 0
    assert "throughput/tflops/device_nominal" not in last
    assert last["throughput/total_flops"] == STEPS * compile_plan(from_huggingface(model()), "exact").flops([LENGTH] * ROWS)
    step = MatrixOptimizer("muon", steps=3).flops([tuple(weight.shape) for weight in matrices])
    assert last["throughput/optimizer_flops"] == 2 * step
    plan_flops = last["throughput/total_flops"] / 2
    assert last["throughput/hfu"] / last["throughput/mfu"] == pytest.approx((plan_flops + 2 * step) / plan_flops)
