"""Kimi delta attention and the second gated delta net, which the oracle does not execute: integers worked out by hand."""

import pytest

from bridge.flops import compile_plan

SMALL = {"num_layers": 1, "hidden_size": 64, "ffn_hidden_size": 8, "num_attention_heads": 2, "vocab_size": 128}
#: Layer -> its fields and the multiply-accumulates of one token.
LAYERS = {
    # P = 2 heads x 8: 5 h P = 5120, h heads = 128, h 8 = 512, 8 P = 128, convolutions 3 x 4 P = 192, state 4 x 2 x 8^2 = 512.
    "kda": (
        {"kimi_kda_layers": [1], "kimi_linear_num_heads": 2, "kimi_linear_head_dim": 8, "multi_latent_attention": True},
        6592,
    ),
    # K = 2 x 8, U = 4 x 8: h (4 K + 3 U) = 10240, convolution 4 (2 K + U) = 256, state 4 x 4 x 8^2 = 1024, output h U = 2048.
    "gdn2": (
        {
            "experimental_attention_variant": "gdn2", "linear_attention_freq": [1], "linear_key_head_dim": 8,
            "linear_num_key_heads": 2, "linear_value_head_dim": 8, "linear_num_value_heads": 4,
        },
        13568,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_multiply_accumulates_of_a_token(name: str) -> None:
    fields, expected = LAYERS[name]
    plan = compile_plan(SMALL | fields, "megatron")
    parts = plan.breakdown([10], passes="forward")
    others = {"mlp", "output_layer"}
    assert sum(flops for part, flops in parts.items() if part not in others) == 2 * 10 * expected
