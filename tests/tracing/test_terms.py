"""Which line of the breakdown a module of a traced model belongs to, by its path."""

from __future__ import annotations

import pytest

from bridge.tracing.terms import Names

NAMES = Names(output="lm_head", blocks=("model.layers.1.mlp",))


@pytest.mark.parametrize(
    ("path", "core", "component"),
    [
        ("model.embed_tokens", False, "embedding"),
        ("model.layers.0.self_attn.q_proj", False, "self_attention"),
        ("model.layers.0.self_attn", True, "core_attention"),
        ("model.layers.0.mlp.up_proj", False, "mlp"),
        ("model.layers.1.mlp.experts.0.up_proj", False, "moe"),
        ("model.layers.0.conv.in_proj", False, "short_convolution"),
        ("model.layers.0.mamba.in_proj", False, "mamba"),
        ("model.layers.0.linear_attn.in_proj_qkvz", False, "recurrence"),
        ("model.layers.0.self_attn.q_proj.lora_A.default", False, "adapters"),
        ("model.visual.blocks.0.attn.qkv", False, "vision_model"),
        ("lm_head", False, "output_layer"),
        ("lm_head.layers.0.proj", False, "output_layer"),
    ],
)
def test_components_by_path(path, core, component):
    assert NAMES.component(path, core) == component
