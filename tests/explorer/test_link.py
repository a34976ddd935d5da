"""The address holds the state: what is written is read back, and what a stranger wrote does no harm."""

import base64
import json
import random
import zlib
from urllib.parse import urlencode

import pytest

from bridge.config import ConfigError
from bridge.explorer import link
from bridge.explorer.controls import Choices, Select, Slider, Toggle, defaults
from bridge.explorer.page import SECTIONS
from bridge.explorer.sources import MAX_CONFIG_BYTES


def other_value(control, dice):
    """Any value the control can have."""
    if isinstance(control, Slider):
        steps = int((control.maximum - control.minimum) / control.step)
        value = control.minimum + dice.randint(0, steps) * control.step
        return control.accept(round(value, 6))
    if isinstance(control, Toggle):
        return dice.random() < 0.5
    if isinstance(control, Choices):
        return tuple(dice.sample(list(control.options), dice.randint(0, min(len(control.options), control.most))))
    return dice.choice(list(control.options))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_written_is_read_back(seed):
    dice = random.Random(seed)
    values = {section: {c.key: other_value(c, dice) for c in controls} for section, controls in SECTIONS.items()}
    read, others, problems = link.read(SECTIONS, "?" + link.write(SECTIONS, values, {"config": "x"}))
    assert (read, others, problems) == (values, {"config": "x"}, [])


def test_first_positions_are_not_written():
    values = {section: defaults(controls) for section, controls in SECTIONS.items()}
    assert link.write(SECTIONS, values, {"config": ""}) == ""
    assert link.read(SECTIONS, "") == (values, {}, [])


@pytest.mark.parametrize(
    "query", ["model.length=abc", "model.length=1e300", "model=../../etc/passwd", "finetune.targets=x", "inference.cache=maybe"]
)
def test_impossible_values_are_reported_and_left_out(query):
    read, _, problems = link.read(SECTIONS, query)
    assert read == {section: defaults(controls) for section, controls in SECTIONS.items()}
    assert len(problems) == 1
    assert problems[0].startswith("This link is not understood.")


def test_a_configuration_travels_along():
    config = {"model_type": "llama", "hidden_size": 4096, "name": "ü"}
    packed = link.pack(json.dumps(config, indent=8))
    assert json.loads(link.unpack(packed)) == config
    assert len(urlencode({"config": packed})) < 150


def test_a_configuration_that_is_too_long_stays_behind():
    dice = random.Random(0)
    assert link.pack(json.dumps({"labels": [dice.random() for _ in range(2000)]})) == ""
    assert link.pack("no json") == ""


def packed(data):
    return base64.urlsafe_b64encode(zlib.compress(data, 9)).decode()


@pytest.mark.parametrize(
    "text",
    ["!", "AAAA", packed(b"[" * 50_000), packed(b"no json"), packed(b" " * (MAX_CONFIG_BYTES + 1) + b"{}"), packed(b"\xff{}")],
)
def test_damaged_configurations_are_refused(text):
    with pytest.raises(ConfigError, match="damaged"):
        link.unpack(text)


def test_keys_are_unique():
    for controls in SECTIONS.values():
        keys = [control.key for control in controls]
        assert len(set(keys)) == len(keys)
        assert all(isinstance(control, (Slider, Select, Choices, Toggle)) for control in controls)
