"""Fine-tuning: what torch counts while adapted and partly frozen models train equals the plan, with and without recomputation.

peft's adapters in transformers on the meta device; ours in megatron-core's GPTModel on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from bridge.config import Config, ModelConfig, PeftConfig, from_huggingface  # noqa: E402
from bridge.flops import compile_plan  # noqa: E402
from oracle import transformers_models as oracle  # noqa: E402
from oracle.fine_tuning_cases import FineTuning, cases  # noqa: E402
from oracle.process import counted_by  # noqa: E402

pytestmark = pytest.mark.all

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LENGTHS = [6, 6]


@dataclass(frozen=True)
class Run:
    """One adapted model of transformers.

    Attributes:
        family, seed: which model.
        targets: peft's names; none for a model without adapters.
        rank: of the adapters.
        layers: only these have adapters; all where empty.
        trained: transformers' modules that train beside the adapters -> the plan's patterns of them.
        dora, dropout: options of the adapters.
    """

    family: str
    seed: int
    targets: tuple[str, ...]
    rank: int = 3
    layers: tuple[int, ...] = ()
    trained: tuple[tuple[str, str], ...] = ()
    dora: bool = False
    dropout: float = 0.0


NORMS, EMBEDDING, HEAD = ("norm", "*norm"), ("embed_tokens", "embedding"), ("lm_head", "output_layer")
RUNS = (
    Run("llama", 0, ATTENTION + MLP),
    Run("llama", 1, ("q_proj", "v_proj"), rank=8),
    Run("llama", 0, ("down_proj",), rank=1),
    Run("llama", 1, ("o_proj", "lm_head"), rank=5),
    Run("llama", 1, ("up_proj",), layers=(1,)),
    Run("llama", 0, ("k_proj",), trained=(NORMS,)),
    Run("llama", 0, ("up_proj",), trained=(EMBEDDING,)),
    Run("llama", 1, ("v_proj",), trained=(HEAD,)),
    Run("llama", 0, ATTENTION + MLP, rank=2, dora=True),
    Run("llama", 1, ("q_proj", "down_proj"), dora=True, dropout=0.1),
    Run("llama", 0, (), trained=(NORMS,)),
    Run("qwen2", 0, (), trained=(("bias", "*.bias"),)),
    Run("qwen3", 0, ATTENTION + MLP, rank=4),
    Run("gemma2", 0, ATTENTION + MLP),
    Run("phi3", 0, ("qkv_proj", "down_proj"), rank=2),
    Run("deepseek_v3", 1, ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj"), rank=4),
    Run("qwen2_moe", 1, ("q_proj", "v_proj")),
    Run("qwen3_moe", 0, ATTENTION, rank=7),
    Run("gpt_oss", 0, ATTENTION, dora=True),
)


def names_in_plan(run: Run, config: Any) -> list[str]:
    names = [HEAD[1] if target == HEAD[0] else oracle.adapter_target(target, config) for target in run.targets]
    return [f"decoder.layers.{layer}.*.{name}" for layer in run.layers for name in names] or names


CHECKPOINTING = [(run, way) for run in RUNS for way in (None, "stops early")] + [(run, "reentrant") for run in RUNS[::3]]


@pytest.mark.parametrize(
    ("run", "checkpointing"),
    CHECKPOINTING,
    ids=lambda case: f"{case.family}-{'-'.join(case.targets) or 'frozen'}-{case.dora}" if isinstance(case, Run) else str(case),
)
def test_peft(run: Run, checkpointing: str | None) -> None:
    huggingface = oracle.draw(run.family, run.seed)
    model = oracle.build(huggingface, device="meta")
    configuration = from_huggingface(huggingface)
    framework = configuration.framework
    if checkpointing:
        reentrant = checkpointing == "reentrant"
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        configuration.model.recompute_granularity, configuration.model.recompute_method = "full", "uniform"
        if reentrant:
            framework = f"{framework}_reentrant"
    if run.targets:
        options = {"layers_to_transform": list(run.layers)} if run.layers else {}
        options |= {"use_dora": run.dora, "lora_dropout": run.dropout}
        model = peft.get_peft_model(model, peft.LoraConfig(r=run.rank, target_modules=list(run.targets), **options))
    for name, parameter in model.named_parameters():
        named = any(part in name for part, _ in run.trained) and ".lora_" not in name
        parameter.requires_grad_(named or (bool(run.targets) and parameter.requires_grad))
    patterns = [pattern for _, pattern in run.trained]
    if run.targets:
        kind = "dora" if run.dora else "lora"
        targets = names_in_plan(run, huggingface)
        configuration.peft = PeftConfig(kind=kind, dim=run.rank, dropout=run.dropout, target_modules=targets, train=patterns)
    else:
        configuration.peft = PeftConfig(kind="freeze", freeze=["*"], train=patterns)
    plan = compile_plan(configuration, convention="executed", framework=framework)
    assert plan.flops(LENGTHS, passes="forward") == oracle.forward(model, len(LENGTHS), LENGTHS[0])
    assert plan.flops(LENGTHS, passes="hardware") == oracle.training(model, len(LENGTHS), LENGTHS[0])
    if checkpointing is None:
        assert plan.flops(LENGTHS) == plan.flops(LENGTHS, passes="hardware")
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    assert plan.parameters()["total"] == sum(number for number, _ in parameters)
    assert plan.parameters()["trainable"] == sum(number for number, trains in parameters if trains)


# ---- megatron-core ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, Any]]:
    """What megatron-core counts with our adapters, case by case: one process for all."""
    return counted_by("count_fine_tuning")


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_our_adapters(case: FineTuning, counted: dict[str, dict[str, Any]]) -> None:
    found = counted[case.name]
    assert "error" not in found, found["error"]
    config = Config(model=ModelConfig(**case.model, make_vocab_size_divisible_by=1), peft=PeftConfig(**case.peft))
    plan = compile_plan(config, convention="executed")
    lengths = [case.length] * case.batch_size
    assert plan.flops(lengths, passes="forward") == found["forward"]
    assert plan.flops(lengths, passes="hardware") == found["training"]
    assert plan.parameters()["total"] == found["parameters"]
    assert plan.parameters()["trainable"] == found["trainable"]
    # What trains, read from the built model, is what the configuration asks for.
    assert found["flops_by_requires_grad"] == plan.flops(lengths)
    assert found["trainable_by_requires_grad"] == found["trainable"]
