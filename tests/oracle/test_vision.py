"""The plan's integer equals what torch counts while transformers runs a vision-language model on images and text."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("transformers")

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from oracle import vision_models as oracle

FAMILIES = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "gemma3",
    "llama4",
    "paligemma",
    "idefics3",
    "smolvlm",
    "internvl",
    "llava_onevision",
    "glm4v",
    "glm4v_moe",
)
#: How transformers names towers and projectors.
TOWER = r"\.(visual|vision_tower)\.|(^|\.)vision_model\."
PROJECTOR = r"\.merger|\.downsample|deepstack|multi_modal_projector|connector"
#: What stands between the rows of LLaVA-OneVision's images belongs to none of them.
#: The switch that freezes a part -> the parameters of transformers that it holds still.
PARTS = {
    "freeze_vision_model": lambda name: bool(re.search(TOWER, name)) and not re.search(PROJECTOR, name),
    "freeze_vision_projection": lambda name: bool(re.search(PROJECTOR, name)),
    "freeze_language_model": lambda name: not re.search(f"{TOWER}|{PROJECTOR}|image_newline", name),
}


@pytest.mark.all(but=["*-0"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "frozen",
    [
        (),
        ("freeze_vision_model",),
        ("freeze_vision_model", "freeze_vision_projection"),
        ("freeze_language_model",),
        ("freeze_vision_model", "freeze_language_model"),
    ],
    ids=lambda frozen: "+".join(frozen) or "full",
)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_vision_language_model(model_type: str, frozen: tuple[str, ...], seed: int) -> None:
    config = oracle.draw(model_type, seed)
    model = oracle.build(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(PARTS[part](name) for part in frozen))
    configuration = from_huggingface(config)
    for part in frozen:
        setattr(configuration.model, part, True)
    plan = compile_plan(configuration, convention="executed")
    batch = oracle.Batch(model, oracle.draw_images(config, seed))
    assert plan.flops([batch.length], batch.patches, passes="forward") == batch.forward()
    assert plan.flops([batch.length], batch.patches, passes="training") == batch.training()
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert plan.parameters()["trainable"] == trainable


def test_a_merger_behind_a_layer_that_is_not_there_is_built_and_never_run() -> None:
    """As in a tower that was cut short."""
    config = oracle.draw("qwen3_vl", 0)
    config.vision_config.deepstack_visual_indexes = [0, config.vision_config.depth + 3]
    model = oracle.build(config)
    plan = compile_plan(from_huggingface(config), convention="executed")
    batch = oracle.Batch(model, oracle.draw_images(config, 0))
    assert plan.flops([batch.length], batch.patches, passes="forward") == batch.forward()
    assert plan.flops([batch.length], batch.patches) == batch.training()
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())


def test_the_projector_of_llama_4_is_as_wide_as_its_field_says() -> None:
    """transformers builds it so; it runs only where that is the width of what the adapter makes."""
    config = oracle.draw("llama4", 0)
    config.vision_config.vision_output_dim += 3
    model = oracle.build(config)
    plan = compile_plan(from_huggingface(config), convention="executed")
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())
