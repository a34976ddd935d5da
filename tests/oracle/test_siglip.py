"""SigLIP's vision tower by itself, executed: drawn shapes, one image and several."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bridge.config import from_huggingface
from bridge.flops import compile_plan

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("seed", range(4))
def test_siglip(seed: int) -> None:
    random = Random(seed)
    heads, patch, side = random.choice([1, 2, 4]), random.choice([2, 4]), random.randint(1, 5)
    config = transformers.SiglipVisionConfig(
        hidden_size=8 * heads, intermediate_size=random.randint(1, 50), num_hidden_layers=random.randint(1, 3),
        num_attention_heads=heads, image_size=side * patch, patch_size=patch, vision_use_head=False,
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.SiglipVisionModel(config)
    plan = compile_plan(from_huggingface(config), "executed")
    for images in (1, 3):
        with FlopCounterMode(display=False) as counter:
            output = model(torch.zeros(images, 3, side * patch, side * patch)).last_hidden_state
            forward = counter.get_total_flops()
            output.sum().backward()
        patches = [side * side] * images
        assert (plan.flops([], patches, "forward"), plan.flops([], patches)) == (forward, counter.get_total_flops())
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert plan.not_counted == ()


def test_what_is_left_out_is_reported() -> None:
    sentences = from_huggingface(transformers.SiglipConfig()).not_counted
    assert [sentence.split("=")[0] for sentence in sentences] == ["text_config", "vision_config.vision_use_head"]
