"""Models that see and hear: traced with images and sound, against FlopCounterMode at numbers that were not used."""

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from bridge.tracing import trace
from tests.tracing.models import GEMMA, IMAGE, WHISPER


def gemma(images, length):
    """Four tokens for each image, then text."""
    ids = torch.full((1, length), 7)
    ids[0, : 4 * images] = IMAGE
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.ones(images, 3, 32, 32), "use_cache": False,
    }  # fmt: skip


def executed(model, values):
    totals = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            out = model(**values).logits
            if backward:
                out.sum().backward()
        totals.append(counter.get_total_flops())
    return totals


def planned(plan, **lengths):
    return [plan.flops(passes=passes, **lengths) for passes in ("forward", "training")]


def test_a_frozen_tower_and_images_of_one_size():
    config = transformers.Gemma3Config(**GEMMA)
    model = transformers.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.model.vision_tower.requires_grad_(False)
    found = from_huggingface(model)
    assert found.source == "traced"
    assert not any("vision_config" in sentence for sentence in found.not_counted)
    plan = compile_plan(found, "executed")
    model.train()
    for images, length in ((1, 9), (3, 31)):
        wanted = executed(model, gemma(images, length))
        assert planned(plan, sequence_lengths=[length], image_patches=[16] * images) == wanted
    lines = plan.breakdown([9], [16])
    assert lines["vision_model"] == plan.breakdown([9], [16], passes="forward")["vision_model"], "it runs forward alone"
    assert plan.flops([9]) == plan.flops([9], [16]) - plan.flops([], [16])


def test_a_clip_for_each_sequence():
    model = transformers.WhisperForConditionalGeneration._from_config(
        transformers.WhisperConfig(**WHISPER), attn_implementation="eager"
    )
    traced = trace(model)
    assert all("all pairs" in sentence for sentence in traced.not_counted)
    plan = compile_plan(traced, "executed")
    values = {"input_features": torch.ones(3, 8, 20), "decoder_input_ids": torch.zeros(3, 17, dtype=torch.long)}
    assert planned(plan, sequence_lengths=[17] * 3)[0] == executed(model, values)[0]
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())
