"""Kimi delta attention: Kimi Linear's layer, whose gate is narrow, and the one with a whole gate by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from oracle.counter import count
from torch import Tensor
from transformers import KimiLinearConfig
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

from bridge.flops import compile_plan
from bridge.flops.reading import read
from bridge.flops.terms import Kind, Pass
from bridge.planning.kv_cache import layer_caches
from tests.flops.components.blocks import SMALL, in_layer, linears, macs, plan_of

#: Three heads of 5.
FIELDS = {
    "kimi_kda_layers": [1], "kimi_linear_num_heads": 3, "kimi_linear_head_dim": 5, "kimi_linear_conv_kernel_size": 4,
    "multi_latent_attention": True,
}  # fmt: skip
WIDTH = 3 * 5


def test_the_weights_of_kimi_linear():
    config = KimiLinearConfig(
        hidden_size=12, num_hidden_layers=1, layer_types=["linear_attention"], linear_num_heads=3, linear_head_dim=5,
        linear_conv_kernel_dim=4,
    )  # fmt: skip
    module = KimiLinearDeltaAttention(config, 0)
    terms = in_layer(FIELDS | {"kimi_linear_low_rank_gate": True})
    plan = plan_of([term for term in terms if term.kind is not Kind.SCAN], "exact")
    assert plan.flops([7], passes="forward") - linears(module, 7) == 2 * 7 * 4 * 3 * WIDTH
    assert plan_of(terms).parameters()["total"] == sum(parameter.numel() for parameter in module.parameters())


def test_a_whole_gate_is_one_square_matrix_of_its_own():
    low, whole = (in_layer(FIELDS | {"kimi_linear_low_rank_gate": narrow}) for narrow in (True, False))
    assert macs(whole, 1) - macs(low, 1) == 12 * WIDTH - (12 * 5 + 5 * WIDTH)
    assert [term.name for term in whole if term.name.startswith("g_")] == ["g_proj"]
    assert [term.name for term in low if term.name.startswith("g_")] == ["g_a_proj", "g_b_proj"]


def test_multiply_accumulates_of_a_token():
    """P = 2 heads x 8: 5 h P = 5120, h heads = 128, h 8 = 512, 8 P = 128, convolutions 3 x 4 P = 192, state 4 x 2 x 8^2 = 512."""
    sizes = {"num_layers": 1, "hidden_size": 64, "ffn_hidden_size": 8, "num_attention_heads": 2, "vocab_size": 128}
    fields = {"kimi_kda_layers": [1], "kimi_linear_num_heads": 2, "kimi_linear_head_dim": 8, "multi_latent_attention": True}
    parts = compile_plan(sizes | fields, "megatron").breakdown([10], passes="forward")
    assert sum(flops for part, flops in parts.items() if part not in ("mlp", "output_layer")) == 2 * 10 * 6592


def test_a_decay_for_every_channel_takes_the_same_four_products():
    """Decay, read, write and answer on each entry of the 5 x 5 states."""
    tokens = 6
    query, key, value, decay = (torch.ones(tokens, 3, 5) for _ in range(4))

    def run() -> Tensor:
        state = torch.zeros(3, 5, 5)
        for step in range(tokens):
            state = (state.reshape(-1, 1, 1) @ decay[step].repeat_interleave(5)[:, None, None]).reshape(3, 5, 5)
            read = key[step][:, None] @ state
            state = state + key[step][:, :, None] @ (value[step][:, None] - read)
            answer = query[step][:, None] @ state
        return answer

    scan = [term for term in in_layer(FIELDS) if term.kind is Kind.SCAN]
    assert plan_of(scan, "exact").flops([tokens], passes="forward") == count(run)


@pytest.mark.parametrize("trained", [*"qkvbgo", "f_a", "f_b"])
def test_gradients_reach_what_is_behind(trained):
    """The recurrence stands behind everything but the gate on its output, the last projection behind that too."""
    path = f"self_attention.{trained}_proj"
    plan = plan_of(in_layer(FIELDS), trains=path.__eq__)
    backward = {term.name for term in plan.terms if term.passes != Pass.FORWARD and term.name in ("delta_rule", "o_proj")}
    assert backward == ({"o_proj"} if trained in ("g", "o") else {"delta_rule", "o_proj"})


def test_the_state_and_the_last_inputs_are_kept():
    ((state, inputs),) = layer_caches(read(SMALL | FIELDS).shape)
    assert (state.entries, state.is_state, inputs.entries) == (3 * 5 * 5, True, 3 * 3 * WIDTH)
