"""Models that see and hear: traced with images and sound, against FlopCounterMode at numbers that were not used."""

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from bridge.tracing import trace
from tests.tracing.models import GEMMA, IMAGE, SMALL, WHISPER

QWEN = {
    "text_config": {**SMALL, "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
    "vision_config": {
        "depth": 2, "embed_dim": 24, "hidden_size": 32, "num_heads": 3, "patch_size": 4, "mlp_ratio": 2, "temporal_patch_size": 2,
        "spatial_merge_size": 2,
    },
    "image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 7,
}  # fmt: skip


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


def test_images_of_any_size():
    config = transformers.Qwen2VLConfig(**QWEN)
    model = transformers.Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="eager")
    traced = trace(model)
    assert not any("vision_config" in sentence for sentence in traced.not_counted)
    plan = compile_plan(traced, "executed")
    grids = torch.tensor([[1, 4, 6], [1, 2, 8]])
    patches = grids.prod(-1).tolist()
    ids = torch.full((1, 40), 8)
    ids[0, : sum(patches) // 4] = IMAGE
    values = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.ones(sum(patches), 3 * 2 * 16), "image_grid_thw": grids, "use_cache": False,
    }  # fmt: skip
    model.train()
    assert planned(plan, sequence_lengths=[40], image_patches=patches)[0] == executed(model, values)[0]


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
