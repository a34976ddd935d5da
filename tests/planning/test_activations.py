"""Activations by hand and against the tensors that megatron-core's own layers keep, component by component."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest
from saved_cases import CASES

from bridge.config import Config, ModelConfig
from bridge.flops import compile_plan
from bridge.planning.activations import LOCAL, LOGITS, RECOMPUTED, TRANSFORMER_ENGINE, Batch, activations
from bridge.planning.layouts import Layout
from bridge.planning.shards import terms_for

#: Module path -> the component that the plan has it under; the first that matches.
COMPONENTS = (
    (r"^$", LOGITS),
    (r"^decoder$", RECOMPUTED),
    (r"^embedding", "embedding"),
    (r"^output_layer|^decoder\.final_layernorm", "output_layer"),
    (r"^mtp\.layers\.\d+\.(enorm|hnorm|eh_proj|final_layernorm)$", "mtp"),
    (r"core_attention", "core_attention"),
    (r"self_attention|input_layernorm", "self_attention"),
    (r"", "channel"),
)
#: What runs again has no module of its own: its checkpoint keeps the inputs one module further up.
TOGETHER = {
    "core_attn": {"core_attention": "self_attention"},
    "uniform": {"core_attention": RECOMPUTED},
    "uniform by two": {"core_attention": RECOMPUTED},
    "block": {RECOMPUTED: "core_attention"},
}


def planned(name: str) -> dict[str, int]:
    case = CASES[name]
    model = case["model"]
    plan = compile_plan(Config(model=ModelConfig(**model)))
    batch = Batch(case["sequences"], model["seq_length"], 2 if model["bf16"] else 4)
    return grouped(name, activations(plan, terms_for(plan, Layout()), Layout(), batch, LOCAL))


def grouped(name: str, amounts: dict[str, int]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for component, amount in amounts.items():
        component = "channel" if component in ("mlp", "moe") else component
        found[TOGETHER.get(name, {}).get(component, component)] += amount
    return dict(found)


@pytest.mark.all(but=["gqa*"])
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_saved_tensors(saved: dict[str, dict[str, int]], name: str) -> None:
    kept: dict[str, int] = defaultdict(int)
    for path, amount in saved[name].items():
        kept[next(component for pattern, component in COMPONENTS if re.search(pattern, path))] += amount
    mine, theirs = planned(name), grouped(name, kept)
    assert mine.keys() == theirs.keys()
    # The numbers that a depth of multi-token prediction moves by one token, and the state of a checkpoint's random numbers.
    rounding = {"mtp": {LOGITS: 2 * 24 * 12 + 8}, "core_attn": {"self_attention": 2 * 4}}.get(name, {})
    for component, amount in theirs.items():
        assert mine[component] == amount - rounding.get(component, 0), component
    assert sum(mine.values()) == pytest.approx(sum(theirs.values()), rel=0.01)


def test_a_fused_layer_by_hand() -> None:
    """bf16, b x s = 8 tokens: norms' inputs and outputs, q, k, v, context, its sums, gate and value, their product."""
    shape = {"num_layers": 1, "hidden_size": 16, "ffn_hidden_size": 40, "num_attention_heads": 4, "num_query_groups": 2,
             "gated_linear_unit": True, "vocab_size": 128, "seq_length": 8, "make_vocab_size_divisible_by": 1}  # fmt: skip
    plan = compile_plan(shape)
    found = activations(plan, terms_for(plan, Layout()), Layout(), Batch(1, 8, 2), TRANSFORMER_ENGINE)
    tokens, h, kv, f, heads = 8, 16, 8, 40, 4
    assert found == {
        "embedding": 8 * tokens,
        "self_attention": tokens * (2 * h + 4) + tokens * 2 * h + tokens * 2 * h,  # norm, projection in, projection out
        "core_attention": tokens * 2 * (h + kv + kv) + tokens * 4 * heads,
        "mlp": tokens * (2 * h + 4) + tokens * 2 * h + tokens * 2 * (2 * f) + tokens * 2 * f,
        "output_layer": tokens * (2 * h + 4) + tokens * 2 * h,
        "logits": tokens * (4 * 128 + 9),
    }


def test_what_is_frozen_keeps_no_input() -> None:
    shape = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 4, "vocab_size": 128, "seq_length": 8}
    trained, frozen = (
        compile_plan(shape, trainable=rule) for rule in (None, lambda path: path != "decoder.layers.0.mlp.linear_fc2")
    )
    kept = [sum(activations(plan, terms_for(plan, Layout()), Layout(), Batch(1, 8, 2)).values()) for plan in (trained, frozen)]
    assert kept[0] - kept[1] == 8 * 2 * 64


def test_sequence_parallelism_divides_all_of_a_layer() -> None:
    shape = {"num_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 128, "seq_length": 32}
    plan = compile_plan(shape)

    def kept(ranks: int, spread: bool) -> dict[str, int]:
        layout = Layout(devices=ranks, tensor_model_parallel_size=ranks, sequence_parallel=spread)
        return activations(plan, terms_for(plan, layout), layout, Batch(2, 32, 2))

    one, two, spread = kept(1, False), kept(2, False), kept(2, True)
    for component in ("self_attention", "core_attention", "mlp"):
        assert 2 * spread[component] == one[component]
    tokens, norm = 2 * 32, 2 * 64 + 4
    # Without it every rank has the whole input of its norms and of its first layers.
    assert two["mlp"] - spread["mlp"] == tokens * (norm + 2 * 64) // 2
