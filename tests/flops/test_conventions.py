"""What each way of counting makes of the same terms, switch by switch, by hand numbers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.flops.conventions import CONVENTIONS, EXACT, EXECUTED, MAXTEXT, MEGATRON, PALM, get
from bridge.flops.statistics import Statistic
from bridge.flops.terms import Context

#: Width 4, MLP 8, vocabulary 10, one head.
SMALL = {"num_layers": 1, "hidden_size": 4, "ffn_hidden_size": 8, "num_attention_heads": 1, "vocab_size": 10}
NAMES = ("megatron", "maxtext", "exact", "executed")


def parts(convention: Any, tokens: int = 7, **fields: Any) -> dict[str, Any]:
    """Forward multiply-accumulates of one sequence, by component."""
    found = compile_plan(SMALL | fields, convention).breakdown([tokens], passes="forward")
    return {name: Fraction(flops, 2) for name, flops in found.items()}


def pairs(context: Context, tokens: int) -> dict[str, Any]:
    """Query-key pairs of one sequence, by convention."""
    return {name: factor * statistic.of(tokens) for name in NAMES for factor, statistic in [get(name).statistic(context)]}


@pytest.mark.parametrize(
    ("context", "tokens", "expected"),
    [
        # half a square, half a square, the triangle, the square
        (Context("causal"), 7, (Fraction(49, 2), Fraction(49, 2), 28, 49)),
        (Context("bidirectional"), 7, (49, 49, 49, 49)),
        # 28 pairs less those of the 4 tokens that are out of sight; MaxText's 7 x 3 - 9 / 2
        (Context("window", (3,)), 7, (18, Fraction(33, 2), 18, 49)),
        (Context("topk", (3,)), 7, (18, Fraction(33, 2), 18, 49)),
        # two chunks of 3 and one of 1: squares of 19 halved, 6 + 6 + 1 pairs
        (Context("chunk", (3,)), 7, (Fraction(19, 2), Fraction(19, 2), 13, 49)),
        # the fourth to the seventh token see one key, the eighth sees two; 64 / (2 x 4)
        (Context("compressed", (4,)), 8, (8, 8, 6, 64)),
        # all pairs are scored to select; MaxText scores them only where something is left out
        (Context("indexer", (3,)), 7, (28, Fraction(49, 2), 28, 49)),
        (Context("indexer", (7,)), 7, (28, 0, 28, 49)),
    ],
    ids=lambda value: f"{value.shape}{value.sizes}" if isinstance(value, Context) else None,
)
def test_pairs(context, tokens, expected):
    assert pairs(context, tokens) == dict(zip(NAMES, expected, strict=True))


def test_attention_and_what_all_agree_on():
    for name, count in pairs(Context("causal"), 7).items():
        assert parts(name) == {
            "self_attention": 7 * (4 * 12 + 4 * 4), "core_attention": 2 * 4 * count, "mlp": 7 * 2 * 4 * 8,
            "output_layer": 7 * 4 * (128 if name in ("megatron", "executed") else 10),
        }  # fmt: skip


def test_routers_and_gates():
    fields = {
        "num_moe_experts": 3, "moe_router_topk": 2, "moe_shared_expert_intermediate_size": 5, "moe_shared_expert_gate": True,
    }  # fmt: skip
    experts, router, gate = 2 * 2 * 4 * 8 + 2 * 4 * 5, 4 * 3, 4
    expected = {"megatron": experts, "maxtext": experts + router, "exact": experts + router + gate}
    assert {name: parts(name, **fields)["moe"] / 7 for name in expected} == expected
    assert parts("executed", **fields)["moe"] == parts("exact", **fields)["moe"]


def test_multi_token_prediction():
    """Projection 2 h^2 and an output layer a depth, which MaxText leaves out; Megatron's three norms."""
    entry = {"megatron": 2 * 16 + 3 * 4, "maxtext": 0, "exact": 2 * 16, "executed": 2 * 16}
    for name in NAMES:
        plain, found = parts(name), parts(name, mtp_num_layers=2)
        assert found.get("mtp", 0) == 2 * 7 * entry[name]
        assert found["output_layer"] == plain["output_layer"] * (1 if name == "maxtext" else 3)


def test_norms_inside_latent_attention():
    fields = {
        "multi_latent_attention": True, "q_lora_rank": 3, "kv_lora_rank": 2, "qk_head_dim": 4, "qk_pos_emb_head_dim": 2,
        "v_head_dim": 4,
    }  # fmt: skip
    matmuls = 4 * 3 + 3 * 6 + 4 * (2 + 2) + 2 * (4 + 4) + 4 * 4
    assert parts("exact", **fields)["self_attention"] == 7 * matmuls
    assert parts("megatron", **fields)["self_attention"] == 7 * (matmuls + 3 + 2)


def test_mamba():
    """Inner width 12 by the heads, 8 by Megatron's rule; seven FLOPs of scan a state; the convolution where it runs."""
    fields = {
        "num_layers": None, "hybrid_layer_pattern": "M", "mamba_num_heads": 3, "mamba_head_dim": 4, "mamba_state_dim": 5,
        "mamba_num_groups": 1,
    }  # fmt: skip

    def mixer(width: int) -> Fraction:
        return 4 * (2 * width + 2 * 5 + 3) + Fraction(7, 2) * width * 5 + width * 4

    convolution = 4 * (12 + 2 * 5)
    expected = {"megatron": mixer(8), "maxtext": mixer(12), "exact": mixer(12), "executed": mixer(12) + convolution}
    assert {name: parts(name, **fields)["mamba"] / 7 for name in NAMES} == expected


def test_a_depth_of_a_hybrid_model_has_no_projection_in_other_frameworks_counts():
    fields = {"num_layers": None, "hybrid_layer_pattern": "*/*"}
    assert {name: parts(name, **fields).get("mtp", 0) for name in NAMES} == {
        "megatron": 0, "maxtext": 0, "exact": 7 * 32, "executed": 7 * 32,
    }  # fmt: skip


def test_a_record_of_ones_own():
    mine = replace(EXACT, name="mine", padded_vocabulary=True, left_out=frozenset())
    assert get(mine) is mine
    assert parts(mine)["output_layer"] == 7 * (4 * 128 + 4)  # the norm before it too
    assert compile_plan(SMALL, mine).convention == "mine"


def test_names():
    assert CONVENTIONS == {"megatron": MEGATRON, "maxtext": MAXTEXT, "exact": EXACT, "executed": EXECUTED, "palm": PALM}
    assert all(get(name) is record for name, record in CONVENTIONS.items())
    with pytest.raises(
        ConfigError, match="convention='precise' is not known; choose one of megatron, maxtext, exact, executed, palm"
    ):
        get("precise")


def test_statistics_keep_what_a_context_is_summed_over():
    factor, statistic = EXACT.statistic(Context("bidirectional", over="images"))
    assert (factor, statistic) == (1, Statistic("square", "images"))
