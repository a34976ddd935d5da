"""Patch embeddings and layers of vision towers beside transformers' own: CLIP, SigLIP, Qwen's, InternVL."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from torch import nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionEmbeddings
from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
from transformers.models.glm4v.modeling_glm4v import Glm4vRMSNorm, Glm4vVisionPatchEmbed
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionLayer
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionBlock
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed, Qwen2VLVisionBlock
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionEmbeddings

from bridge.flops.components.vision_tower import GELU, full_attention_layers, patch_embedding, vision_layer
from bridge.flops.elementwise import MULTIPLICATION, ROPE
from tests.flops.components.blocks import executed, priced, turns

#: 3 channels, patches of 2 x 2, images of 6 x 6.
SIDE, PATCHES = 6, 9
SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 20, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 2}
EAGER = {"attn_implementation": "eager"}


# ---- where patches come from -------------------------------------------------------------------------------------------


def test_siglip_patches():
    module = SiglipVisionEmbeddings(transformers.SiglipVisionConfig(**SIZES))
    terms = patch_embedding(patch_values=12, hidden_size=8, bias=True, num_position_embeddings=PATCHES)
    run = executed(module, lambda: module(torch.zeros(2, 3, SIDE, SIDE)))
    assert priced(terms, image_patches=[PATCHES] * 2) == run


def test_clip_patches_and_the_token_beside_them():
    """The norm over all of them is the tower's."""
    parts = nn.Sequential(CLIPVisionEmbeddings(transformers.CLIPVisionConfig(**SIZES)), nn.LayerNorm(8))
    options: dict[str, Any] = {"patch_values": 12, "hidden_size": 8, "bias": False, "num_position_embeddings": PATCHES + 1}
    run = executed(parts, lambda: parts(torch.zeros(2, 3, SIDE, SIDE)))
    assert priced(patch_embedding(**options, class_token=True), image_patches=[PATCHES] * 2) == run
    without = priced(patch_embedding(**options, class_token=True, normed=False), image_patches=[PATCHES] * 2)
    assert run[2] - without[2] == 2 * 8


def test_patches_of_two_frames():
    module = PatchEmbed(patch_size=2, temporal_patch_size=2, in_channels=3, embed_dim=8)
    run = executed(module, lambda: module(torch.zeros(PATCHES, 24)))
    assert priced(patch_embedding(patch_values=24, hidden_size=8, bias=False), image_patches=[PATCHES]) == run


def test_patches_with_a_norm_of_their_own():
    config = Glm4vVisionConfig(hidden_size=8, patch_size=2, temporal_patch_size=2, in_channels=3, num_heads=2)
    parts = nn.Sequential(Glm4vVisionPatchEmbed(config), Glm4vRMSNorm(8))
    terms = patch_embedding(patch_values=24, hidden_size=8, bias=True, patch_norm=True)
    assert priced(terms, image_patches=[PATCHES]) == executed(parts, lambda: parts(torch.zeros(PATCHES, 24)))


# ---- layers --------------------------------------------------------------------------------------------------------------


def clip():
    module = CLIPEncoderLayer(transformers.CLIPVisionConfig(**SIZES, **EAGER))
    return module, lambda: module(torch.zeros(1, PATCHES + 1, 8), None)


def siglip():
    module = SiglipEncoderLayer(transformers.SiglipVisionConfig(**SIZES, **EAGER))
    return module, lambda: module(torch.zeros(1, PATCHES, 8), None)


def qwen2_vl():
    config = Qwen2VLVisionConfig(embed_dim=8, num_heads=2, mlp_ratio=2, **EAGER)
    module = Qwen2VLVisionBlock(config)
    return module, lambda: module(torch.zeros(PATCHES, 8), torch.tensor([0, PATCHES]), turned())


def qwen2_5_vl(*ends: int):
    config = Qwen2_5_VLVisionConfig(hidden_size=8, intermediate_size=20, num_heads=2, **EAGER)
    module = Qwen2_5_VLVisionBlock(config)
    return module, lambda: module(torch.zeros(PATCHES, 8), torch.tensor([0, *ends]), turned())


def turned():
    cosines, sines = turns(PATCHES, 4)
    return cosines[0], sines[0]


def internvl(bias: bool):
    config = InternVLVisionConfig(**SIZES | {"image_size": [6, 6], "patch_size": [2, 2]}, attention_bias=bias, **EAGER)
    config.norm_type = "layer_norm"
    module = InternVLVisionLayer(config)
    return module, lambda: module(torch.zeros(1, PATCHES + 1, 8))


LAYERS = {
    "siglip": (siglip, {"gated": False}),
    "clip": (clip, {"gated": False, "class_token": True}),
    "qwen2_vl": (qwen2_vl, {"gated": False, "intermediate_size": 16}),
    "qwen2_5_vl, the whole image": (lambda: qwen2_5_vl(PATCHES), {"gated": True, "norm_bias": False}),
    "qwen2_5_vl, windows of 4": (
        lambda: qwen2_5_vl(4, 8, PATCHES),
        {"gated": True, "norm_bias": False, "window_patches": 4},
    ),
    "internvl": (lambda: internvl(True), {"gated": False, "class_token": True, "layer_scale": True}),
    "internvl without biases": (
        lambda: internvl(False),
        {"gated": False, "class_token": True, "layer_scale": True, "qkv_bias": False},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_transformers(name):
    build, options = LAYERS[name]
    module, run = build()
    terms = vision_layer(**{"hidden_size": 8, "intermediate_size": 20, "heads": 2} | options)
    assert priced(terms, image_patches=[PATCHES]) == executed(module, run)


def test_linear_layers_without_biases():
    plain, biased = (
        priced(vision_layer(hidden_size=8, intermediate_size=20, gated=False, bias=bias), image_patches=[PATCHES])
        for bias in (False, True)
    )
    assert biased[2] - plain[2] == 8 + 20 + 8
    assert biased[:2] == plain[:2]


def test_heads_share_the_width():
    found = {heads: priced(vision_layer(hidden_size=8, intermediate_size=20, gated=False, heads=heads), image_patches=[PATCHES])
             for heads in (1, 2, 8)}  # fmt: skip
    assert found[1] == found[2] == found[8]


@pytest.mark.parametrize(("options", "name", "operations"), [
    ({"rope": True}, "rope", 2 * 8 * ROPE),
    ({"rope": False}, "rope", 0 * ROPE),
    ({"layer_scale": True}, "attention_scale", 8 * MULTIPLICATION),
    ({"gated": True}, "activation", 20 * (GELU + MULTIPLICATION)),
    ({}, "activation", 20 * GELU),
    ({"layer_scale": True}, "mlp_scale", 8 * MULTIPLICATION),
])  # fmt: skip
def test_what_is_not_a_matmul(options, name, operations):
    terms = vision_layer(**{"hidden_size": 8, "intermediate_size": 20, "gated": False} | options)
    assert [term.operations for term in terms if term.name == name][-1] == operations


@pytest.mark.parametrize(
    ("depth", "window", "full", "expected"),
    [
        (3, 0, (), [True, True, True]),
        (3, 4, (), [False, False, False]),
        (4, 4, (1, 3), [False, True, False, True]),
        (2, 4, (0, 7), [True, False]),
        (0, 4, (0,), []),
    ],
)
def test_layers_that_see_the_whole_image(depth, window, full, expected):
    assert full_attention_layers(depth, window, full) == expected
