"""What a block says of itself: caches of a recurrence, which models ask for a row, and what a row leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from bridge.flops.build import Layer
from bridge.flops.components.registry import CHANNELS, MIXERS, PARTS, PROJECTORS
from bridge.flops.frameworks import FRAMEWORKS
from bridge.flops.rows import Cache, Mixer, Part, Projector, recurrent
from bridge.flops.shapes import ModelShape, VisionShape

LAYER = Layer(1, "x", "mlp")


@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_a_short_convolution_needs_the_inputs_before_the_last(kernel):
    """Run token by token on what is kept, a causal convolution gives what it gives on the whole sequence."""
    channels, tokens = 3, 6
    _, kept = recurrent(5, channels, kernel)
    x, weight = torch.rand(channels, tokens), torch.rand(channels, 1, kernel)
    whole = functional.conv1d(functional.pad(x, (kernel - 1, 0)), weight, groups=channels)
    held = torch.zeros(channels, kernel - 1)
    for token in range(tokens):
        assert held.numel() == kept.entries
        seen = torch.cat([held, x[:, token : token + 1]], 1)
        assert torch.allclose(functional.conv1d(seen, weight, groups=channels)[:, 0], whole[:, token])
        held = seen[:, 1:]


def test_a_recurrence_keeps_a_state_of_one_size():
    state, inputs = recurrent(48, 10, 4)
    assert state == Cache("state", 48, is_state=True)
    assert inputs == Cache("convolution_inputs", 30)
    assert (state.kept, state.read, state.owned, inputs.is_state) == (None, None, True, False)
    with pytest.raises(AttributeError):
        state.entries = 0


def mixer(**fields):
    return Mixer(name="x", terms=lambda build, layer: [], cache=lambda shape, layer: [], **fields)


def everywhere(shape):
    return [True] * shape.num_layers


@pytest.mark.parametrize(
    ("fields", "value", "asked"),
    [
        ({"variant": ("new", "old"), "layers": everywhere}, "new", True),
        ({"variant": ("new", "old"), "layers": everywhere}, "old", True),
        ({"variant": ("new", "old"), "layers": everywhere}, "other", False),
        ({"variant": ("new", "old"), "layers": everywhere}, None, False),
        ({"variant": ("new",)}, "new", False),  # stands by its symbol alone
        ({"layers": everywhere}, "anything", True),
        ({"layers": everywhere}, "", False),
        ({"layers": everywhere}, None, False),
        ({}, "anything", False),
    ],
)
def test_which_models_ask_for_a_mixer(fields, value, asked):
    assert mixer(**fields).asked(ModelShape(num_layers=2, experimental_attention_variant=value)) is asked


def test_a_mixer_may_be_asked_for_by_another_field():
    row = mixer(option="kimi_kda_layers", layers=everywhere)
    assert row.asked(ModelShape(num_layers=2, kimi_kda_layers=[1]))
    assert not row.asked(ModelShape(num_layers=2, kimi_kda_layers=[]))
    assert not row.asked(ModelShape(num_layers=2, experimental_attention_variant="gdn"))


def test_a_part_that_adds_nothing_to_a_layer():
    part = Part(name="x")
    assert part.terms(None, LAYER) == []
    assert part.cache(ModelShape(), LAYER) == []
    assert part.terms(None, LAYER) is not part.terms(None, LAYER)  # each caller may add to its own
    assert (part.option, part.trains, dict(part.colour)) == ("", False, {})


def test_what_runs_as_it_is_priced_says_nothing():
    assert {mixer().executed(framework) for framework in FRAMEWORKS.values()} == {""}


@pytest.mark.parametrize(
    "row", [mixer(), Part(name="x"), Projector(name="x", terms=lambda vision: [])], ids=lambda row: type(row).__name__
)
def test_rows_are_keys_whatever_their_colors(row):
    assert hash(row) == hash(replace(row, colour={"line": "blue"}))
    with pytest.raises(AttributeError):
        row.name = "y"
    with pytest.raises(TypeError):
        type(row)("x")


def test_towers_turn_nothing_unless_their_row_says_so():
    assert not Projector(name="x", terms=lambda vision: []).rotary
    assert {name for name, row in PROJECTORS.items() if row.rotary} == {
        "merger",
        "gated_merger",
        "pixel_shuffle",
    }  # Qwen, GLM, Llama 4


def test_every_row_of_the_tables_names_fields_that_models_have():
    """An option or a required field that no shape has would be ``None`` for ever."""
    known = set(ModelShape.__dataclass_fields__)
    for row in (*MIXERS.values(), *CHANNELS.values()):
        assert set(row.required) <= known, row.name
    assert {row.option for row in MIXERS.values()} <= known
    assert {row.option for row in PARTS.values() if row.option} <= known
    assert {name for row in PROJECTORS.values() for name in row.required} <= set(VisionShape.__dataclass_fields__)
