"""What trains is what is counted: windows, the vocabulary and activations are those of the shape."""

from __future__ import annotations

import pytest

pytest.importorskip("megatron.core")

from megatron.core.transformer.utils import is_layer_window_attention

from bridge.config import load_recipe
from bridge.flops.components.registry import CHANNELS, MIXERS, PARTS, PROJECTORS
from bridge.flops.elementwise import ACTIVATIONS
from bridge.flops.layer_pattern import decoder_layers
from bridge.flops.reading import read
from bridge.flops.shapes import ConfigError
from bridge.flops.terms import Context
from bridge.training.engine.activations import FUNCTIONS
from bridge.training.engine.model import check_trainable, transformer_config, window_of


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        ([], [0, 0, 0, 0]),
        (["model.window_size=5"], [5, 5, 5, 5]),
        (["model.window_size=[4,0]", "model.window_attn_skip_freq=2"], [5, 0, 5, 0]),
        (["model.window_size=[4,2]", "model.window_attn_skip_freq=[1,0,0,1]"], [7, 0, 0, 7]),
        (["model.window_size=3", "model.interleaved_attn_pattern=[2,1]"], [3, 3, 0, 3]),
        (["model.window_size=[-1,-1]"], [0, 0, 0, 0]),
    ],
)
def test_windows(options: list[str], windows: list[int]) -> None:
    cfg = load_recipe("tiny", ["model.num_layers=4", *options])
    size, skip = window_of(cfg.model)
    trained = [size[0] + 1 if size and is_layer_window_attention(size, skip, number) else 0 for number in (1, 2, 3, 4)]
    counted = [sum(layer.context.sizes) for layer in decoder_layers(read(cfg).shape)]
    assert trained == counted == windows
    assert {layer.context for layer in decoder_layers(read(cfg).shape)} <= {Context("causal"), Context("window", (max(windows),))}
    assert transformer_config(cfg).window_size == size


def test_activations() -> None:
    assert FUNCTIONS.keys() == ACTIVATIONS.keys()


def test_what_our_engine_trains() -> None:
    tables = {"mixers": MIXERS, "channels": CHANNELS, "projectors": PROJECTORS, "parts": PARTS}
    trained = {kind: {row.name for row in rows.values() if row.trains} for kind, rows in tables.items()}
    assert trained == {
        "mixers": {"attention", "mla"},
        "channels": {"mlp", "moe"},
        "projectors": {"merger"},
        "parts": {"mtp", "output_layer", "vision_model"},
    }


@pytest.mark.parametrize(
    "option",
    [
        "experimental_attention_variant=dsa",
        "kimi_kda_layers=[1]",
        "hc_mult=4",
        "hidden_size_per_layer_input=8",
        "encoder_num_layers=2",
        "hybrid_layer_pattern=MM",
        "layernorm_placement=post",
    ],
)
def test_what_it_does_not(option: str) -> None:
    cfg = load_recipe("tiny", [f"model.{option}"], validate=False)
    with pytest.raises(ConfigError, match=rf"model\.{option.split('=')[0]}=.* can be counted"):
        check_trainable(cfg)
