"""Models that see and hear: traced with images and sound, against FlopCounterMode at numbers that were not used."""

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from bridge.tracing import trace
from bridge.tracing.images import forms, takes_images, tokens_of
from tests.tracing.models import GEMMA, IMAGE, SMALL, WHISPER


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


ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
TEXT = {**SMALL, **ROPE, "num_key_value_heads": 2, "head_dim": 8}
TOWER = {"depth": 2, "num_heads": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
TOKENS = {"image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 8}
TOWERS = {
    "Qwen2VL": {**TOWER, "embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2},
    "Qwen3VL": {
        **TOWER, "hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 40, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    },
    "Qwen2_5_VL": {
        **TOWER, "hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 40, "window_size": 32,
        "fullatt_block_indexes": [1],
    },
}  # fmt: skip


def qwen(family):
    config = getattr(transformers, f"{family}Config")(text_config=TEXT, vision_config=TOWERS[family], **TOKENS)
    kind = getattr(transformers, f"{family}ForConditionalGeneration")
    return kind._from_config(config, attn_implementation="eager")


def of_sizes(grids, text):
    """Images of these sides in patches, a token after each, then text."""
    ids = [token for h, w in grids for token in [*[IMAGE] * (h * w // 4), 7]] + [7] * text
    ids = torch.tensor([ids])
    pixels = torch.ones(sum(h * w for h, w in grids), 3 * 2 * 4 * 4)
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, h, w] for h, w in grids]), "use_cache": False,
    }  # fmt: skip


@pytest.mark.all
@pytest.mark.parametrize("family", ["Qwen2VL", "Qwen3VL"])
def test_images_of_any_size(family):
    """Work as a function of patches and their squares, at sizes that were not used to find it."""
    model = qwen(family).train()
    traced = trace(model)
    assert traced.not_counted == ()
    plan = compile_plan(traced, "executed")
    for grids in ([(4, 4)], [(2, 20), (12, 6), (10, 10)]):
        values = of_sizes(grids, 11)
        wanted = executed(model, values)
        assert planned(plan, sequence_lengths=[values["input_ids"].numel()], image_patches=[h * w for h, w in grids]) == wanted
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.all
def test_windows_that_patches_do_not_fill_are_named():
    traced = trace(qwen("Qwen2_5_VL"))
    assert [sentence for sentence in traced.not_counted if "vision_config" in sentence]


def test_pixels_whose_sizes_stand_beside_them():
    """Pixtral's tower, of which Mistral 3 merges two by two patches."""
    tower = {
        "model_type": "pixtral",
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
    }
    text = {"model_type": "mistral", **SMALL, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.Mistral3Config(
        vision_config={**tower, "patch_size": 4, "image_size": 64},
        text_config=text,
        spatial_merge_size=2,
        image_token_index=IMAGE,
    )
    model = transformers.Mistral3ForConditionalGeneration._from_config(config, attn_implementation="eager")
    assert takes_images(model)
    way = next(forms(model))
    assert way.grids[1] == (2 * 3, 2 * 5)
    assert [tokens_of(model, way.values(images, (6, 10))) for images in (1, 2)] == [15, 30]


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
