"""From patches to tokens: every projector beside transformers' own, with the norm that stands before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionPatchMerger
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector
from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector, Llama4VisionPixelShuffleMLP
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector
from transformers.models.paligemma.modeling_paligemma import PaliGemmaMultiModalProjector
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchMerger

from bridge.flops import ConfigError, compile_plan
from bridge.flops.components.registry import PROJECTORS
from bridge.flops.components.vision_projector import merged_tokens, merger_of
from bridge.flops.shapes import VisionShape
from tests.flops.components.blocks import SMALL, executed, priced

#: A tower 8 wide over 6 x 6 patches, a language model 12 wide.
PATCHES = 36
SIZES: dict[str, Any] = {"depth": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 20, "out_hidden_size": 12}
TEXT = {"model_type": "llama", "hidden_size": 12, "num_attention_heads": 4}
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 8, "image_size": 12, "patch_size": 2, "num_attention_heads": 2,
    "projection_dim": 12,
}  # fmt: skip
Built = tuple[nn.Module, Callable[[], Tensor]]


def image(patches: int = PATCHES) -> Tensor:
    return torch.zeros(1, patches, 8)


def behind_a_norm(projector: nn.Module, norm: nn.Module) -> Built:
    both = nn.Sequential(norm, projector)
    return both, lambda: both(image())


def merger(kind: Callable[[], nn.Module]) -> Built:
    module = kind()
    return module, lambda: module(image()[0])


def gemma3() -> Built:
    config = transformers.Gemma3Config(
        vision_config=SIGLIP, text_config=TEXT | {"model_type": "gemma3_text"}, mm_tokens_per_image=9
    )
    return behind_a_norm(Gemma3MultiModalProjector(config), nn.LayerNorm(8))


def llava() -> Built:
    config = transformers.LlavaConfig(
        vision_config=SIGLIP | {"model_type": "clip_vision_model"}, text_config=TEXT, vision_feature_layer=-2
    )
    module = LlavaMultiModalProjector(config)
    return module, lambda: module(image())


def onevision(bias: bool) -> Built:
    """The norm after the last layer is built, and its output is not used."""
    config = transformers.LlavaOnevisionConfig(
        vision_config=SIGLIP, text_config=TEXT | {"model_type": "qwen2"}, multimodal_projector_bias=bias
    )
    module = LlavaOnevisionMultiModalProjector(config)
    return nn.ModuleList([module, nn.LayerNorm(8)]), lambda: module(image())


def paligemma() -> Built:
    config = transformers.PaliGemmaConfig(vision_config=SIGLIP, text_config=TEXT | {"model_type": "gemma"}, projection_dim=12)
    return behind_a_norm(PaliGemmaMultiModalProjector(config), nn.LayerNorm(8))


def idefics3() -> Built:
    vision = {"hidden_size": 8, "num_attention_heads": 2}
    config = transformers.Idefics3Config(vision_config=vision, text_config=TEXT, scale_factor=3)
    return behind_a_norm(Idefics3Connector(config), nn.LayerNorm(8))


def internvl() -> Built:
    vision = {"hidden_size": 8, "num_attention_heads": 2}
    config = transformers.InternVLConfig(vision_config=vision, text_config=TEXT | {"model_type": "qwen2"}, downsample_ratio=0.5)
    module = InternVLMultiModalProjector(config)
    return module, lambda: module(torch.zeros(PATCHES // 4, 4 * 8))


def glm4v() -> Built:
    """A norm, a convolution over 2 x 2 patches, and the merger; the tower's norms have no bias."""
    whole = nn.ModuleList([nn.RMSNorm(8), nn.Conv2d(8, 12, 2, 2), Glm4vVisionPatchMerger(12, 20, "silu")])
    norm, convolution, last = whole
    return whole, lambda: last(convolution(norm(torch.zeros(PATCHES // 4, 2, 2, 8)).permute(0, 3, 1, 2)).flatten(1))


def llama4() -> Built:
    """A class token goes through the last norm, and not further."""
    vision = {
        "hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2, "projector_input_dim": 10,
        "projector_output_dim": 10, "vision_output_dim": 10, "pixel_shuffle_ratio": 0.5, "projector_dropout": 0.0,
    }  # fmt: skip
    config = transformers.Llama4Config(vision_config=vision, text_config={"hidden_size": 12, "num_attention_heads": 4})
    parts = nn.ModuleList([nn.LayerNorm(8), Llama4VisionPixelShuffleMLP(config.vision_config), Llama4MultiModalProjector(config)])
    norm, adapter, last = parts
    return parts, lambda: last(adapter(norm(image(PATCHES + 1))[:, :-1]))


TWO, THREE, ONE = ({"spatial_merge_size": size} for size in (2, 3, 1))
CASES: dict[str, tuple[Callable[[], Built], str, dict[str, Any]]] = {
    "qwen2_vl": (lambda: merger(lambda: PatchMerger(12, 8, 2)), "merger", TWO),
    "qwen2_vl, 3 x 3": (lambda: merger(lambda: PatchMerger(12, 8, 3)), "merger", THREE),
    "qwen2_5_vl": (lambda: merger(lambda: Qwen2_5_VLPatchMerger(12, 8, 2)), "merger", TWO | {"hidden_act": "silu"}),
    "gemma3": (gemma3, "pooled_linear", TWO),
    "llava": (llava, "mlp", ONE),
    "llava_onevision": (lambda: onevision(True), "tile_mlp", ONE),
    "llava_onevision without biases": (lambda: onevision(False), "tile_mlp", ONE | {"projector_bias": False}),
    "paligemma": (paligemma, "linear", ONE),
    "idefics3": (idefics3, "linear", THREE | {"projector_bias": False}),
    "internvl": (internvl, "normed_mlp", TWO),
    "glm4v": (glm4v, "gated_merger", TWO | {"hidden_act": "silu", "projector_input_dim": 20}),
    "llama4": (
        llama4,
        "pixel_shuffle",
        TWO | {"intermediate_size": 32, "projector_input_dim": 10, "projector_output_dim": 10, "class_token": True},
    ),
    "a norm alone": (lambda: behind_a_norm(nn.Identity(), nn.LayerNorm(8)), "none", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_projector_of_transformers(name):
    build, kind, fields = CASES[name]
    module, run = build()
    terms = PROJECTORS[kind].terms(VisionShape(**SIZES | fields))
    found = priced(terms, image_patches=[PATCHES])
    if kind == "none":  # nothing but a norm, which torch does not count
        assert found == (0, 0, 16)
    else:
        assert found == executed(module, run)


def test_every_projector_has_its_case():
    assert {kind for _, kind, _ in CASES.values()} == PROJECTORS.keys()


def test_mergers_inside_the_tower_norm_what_they_have_merged():
    config = transformers.models.qwen3_vl.configuration_qwen3_vl.Qwen3VLVisionConfig(
        hidden_size=8, spatial_merge_size=2, out_hidden_size=12, num_heads=2
    )
    for deep in (False, True):
        module = Qwen3VLVisionPatchMerger(config, use_postshuffle_norm=deep)
        run = executed(module, lambda: module(image()[0]))  # noqa: B023
        assert priced(merger_of(VisionShape(**SIZES), deep=deep), image_patches=[PATCHES]) == run


@pytest.mark.parametrize(("patches", "side", "tokens"), [(0, 2, 0), (3, 2, 0), (4, 2, 1), (35, 2, 8), (36, 3, 4), (7, 1, 7)])
def test_patches_that_fill_no_token_are_dropped(patches, side, tokens):
    assert merged_tokens(side).sum([patches]) == tokens


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("gated_merger", "projector_input_dim"),
        ("pixel_shuffle", "projector_input_dim"),
        ("pixel_shuffle", "projector_output_dim"),
    ],
)
def test_a_width_that_is_missing_is_named(kind, missing):
    widths = {"projector_input_dim": 10, "projector_output_dim": 10} | {missing: None}
    vision = {"depth": 1, "hidden_size": 8, "projector_type": kind} | widths
    with pytest.raises(ConfigError, match=f"model.vision_config.{missing} is missing"):
        compile_plan(SMALL | {"vision_config": vision})


def test_which_towers_turn_their_patches():
    assert {name for name, row in PROJECTORS.items() if row.rotary} == {"merger", "gated_merger", "pixel_shuffle"}
