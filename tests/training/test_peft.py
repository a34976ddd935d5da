"""Adapters: the model starts as it was, learns by its adapters alone, and computes the same once they are merged."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("megatron.core")

from launch import HERE, launch

from bridge.config import load_recipe
from bridge.flops.shapes import ConfigError
from bridge.training.engine.model import check_trainable

TENSOR_1 = ["dense-{}-fused", "dense-{}-split", "moe-{}-fused", "mla-{}-fused"]
NAMES = [
    f"{stem.format(kind)}-tensor{layout}"
    for layout in ("1", "2", "2-sequence")
    for kind in ("lora", "dora")
    for stem in TENSOR_1
    if (stem.startswith("moe"), layout) != (True, "2")
]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    result = launch(2, str(HERE / "peft_worker.py"))
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.all
@pytest.mark.parametrize("name", NAMES)
def test_adapters(name: str, found: dict[str, Any]) -> None:
    case = found[name]
    assert case["start"] == case["plain"]
    assert case["only_adapters"]
    assert abs(case["stirred"] - case["start"]) > 1e-3
    if "lora" in name:  # DoRA's gradient takes the lengths of rows for constants, which they are not
        assert case["slope"] == pytest.approx(case["difference"], rel=3e-2, abs=5e-3)
    if "sequence" in name and "moe" not in name:
        assert case["slope"] == pytest.approx(found[name.removesuffix("-sequence")]["slope"], rel=1e-4, abs=1e-5)
    assert case["merged"] == pytest.approx(case["stirred"], rel=1e-5)
    assert case["left"] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["peft.target_modules=[linear_qvk]"],
            "'linear_qvk' matches no linear layer of this model; choose from",
        ),
        (["peft.target_modules=['decoder.layers.99.*']"], "decoder.layers.99"),
        (["peft.kind=lokr"], "lokr"),
        (["peft.kind=qlora"], "hold no weights in four bits; train with peft.kind=lora"),
        (["peft.dropout=2"], "peft.dropout=2"),
    ],
)
def test_what_cannot_be_adapted_is_named(options: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        check_trainable(load_recipe("tiny", ["peft.dim=4", *options]))
