"""Tiny vision-language models of transformers, on the CPU: their towers look at the values of the image grid."""

from __future__ import annotations

import inspect
from random import Random
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from oracle.counter import count

IMAGE, START, END = 10, 12, 13
MERGE = 2
WINDOW = 4
"""Side of an attention window, in patches (Qwen2.5-VL)."""
SQUARE = ("gemma3", "llama4", "paligemma", "idefics3", "smolvlm", "internvl", "llava_onevision")
"""Families whose images all have the size that the tower is built for."""
TOWERS = {"gemma3": "siglip_vision_model", "paligemma": "siglip_vision_model", "llava_onevision": "siglip_vision_model"}
"""The ``model_type`` of towers that more than one family has."""
TEXTS = {"paligemma": ("gemma", "gemma2"), "idefics3": ("llama",), "smolvlm": ("llama",), "internvl": ("qwen2", "qwen3"),
         "llava_onevision": ("qwen2", "llama")}  # fmt: skip
"""Language models that go into several families."""


def draw(model_type: str, seed: int) -> PreTrainedConfig:
    """A configuration with small, uneven sizes; the same for the same seed."""
    if model_type in SQUARE:
        return _draw_square(model_type, seed)
    random = Random(f"{model_type} {seed}")
    hidden, heads, width = 8 * random.randint(2, 5), 2, 12 * random.randint(1, 3)
    depth, patch = random.randint(2, 4), random.randint(2, 5)
    text: dict[str, Any] = {
        "vocab_size": random.randint(50, 200),
        "hidden_size": hidden,
        "intermediate_size": random.randint(10, 50),
        "num_hidden_layers": random.randint(1, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": random.choice([1, heads]),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, hidden // heads // 2 - 2]},
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    tower: dict[str, Any] = {
        "depth": depth,
        "num_heads": 3,
        "patch_size": patch,
        "temporal_patch_size": random.choice([1, 2]),
    }
    if model_type.startswith("glm4v"):
        # As wide inside as the language model; the merger has a width of its own.
        tower |= {"image_size": patch * random.randint(2, 5) + 1, "attention_bias": random.random() < 0.5}
        text |= {"attention_bias": random.random() < 0.5, "num_hidden_layers": random.randint(2, 3)}
        text["rope_parameters"]["partial_rotary_factor"] = 1.0
        text |= {"n_shared_experts": random.randint(1, 2), "n_routed_experts": 4} if model_type.endswith("moe") else {}
    if model_type == "qwen2_vl":
        tower |= {"embed_dim": width, "hidden_size": hidden, "mlp_ratio": random.randint(1, 4)}
    else:
        tower |= {"hidden_size": width, "out_hidden_size": hidden, "intermediate_size": random.randint(10, 40)}
    if model_type == "qwen2_5_vl":
        tower |= {"window_size": WINDOW * patch, "fullatt_block_indexes": [random.randrange(depth)]}
    if model_type.startswith("qwen3"):
        text["head_dim"] = hidden // heads
        # Each goes into a decoder layer of its own; without one, its merger would run for nothing and get no gradient.
        mergers = random.randint(0, min(depth, text["num_hidden_layers"]))
        indexes = sorted(random.sample(range(depth), mergers))
        tower |= {"num_position_embeddings": 64, "deepstack_visual_indexes": indexes}
    if model_type.endswith("moe"):
        text |= {"num_experts": 4} if model_type.startswith("qwen") else {}
        text |= {"num_experts_per_tok": random.randint(1, 4), "moe_intermediate_size": random.randint(4, 20)}
    ids = {"image_token_id": IMAGE, "video_token_id": 11, "vision_start_token_id": START, "vision_end_token_id": END}
    tied = random.random() < 0.5
    return CONFIG_MAPPING[model_type](text_config=text, vision_config=tower, tie_word_embeddings=tied, **ids)


def _draw_square(model_type: str, seed: int) -> PreTrainedConfig:
    """SigLIP in Gemma 3, and Llama 4, whose experts get another test: all layers are dense."""
    random = Random(f"{model_type} {seed}")
    heads, width, patch, side = 2, 8 * random.randint(1, 3), random.randint(2, 4), MERGE * random.randint(1, 3)
    text: dict[str, Any] = {
        "vocab_size": random.randint(50, 200), "hidden_size": 8 * random.randint(2, 5), "num_hidden_layers": random.randint(1, 3),
        "intermediate_size": random.randint(10, 50), "num_attention_heads": heads,
        "num_key_value_heads": random.choice([1, heads]), "head_dim": 2 * random.randint(2, 9),
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    tower: dict[str, Any] = {
        "hidden_size": width, "num_hidden_layers": random.randint(1, 3), "num_attention_heads": heads, "patch_size": patch,
        "image_size": side * patch, "intermediate_size": random.randint(10, 40),
    }  # fmt: skip
    tied = model_type != "llama4" and random.random() < 0.5  # transformers never ties Llama 4's
    ids: dict[str, Any] = {"image_token_id": IMAGE}
    if model_type in TOWERS:
        tower |= {"model_type": TOWERS[model_type], "vision_use_head": False}
    if model_type in TEXTS:
        text["model_type"] = random.choice(TEXTS[model_type])
        text["tie_word_embeddings"] = tied
    if model_type == "gemma3":
        ids["mm_tokens_per_image"] = (side // MERGE) ** 2
    elif model_type == "paligemma":
        ids["projection_dim"] = text["hidden_size"]
    elif model_type in ("idefics3", "smolvlm"):
        ids["scale_factor"] = MERGE
    elif model_type == "internvl":
        tower |= {"image_size": [side * patch] * 2, "patch_size": [patch] * 2, "attention_bias": random.random() < 0.5}
    elif model_type == "llava_onevision":
        ids |= {"multimodal_projector_bias": random.random() < 0.5, "image_token_index": IMAGE}
    else:
        inner = random.randint(5, 40)
        text |= {"moe_layers": [], "intermediate_size_mlp": random.randint(10, 50)}
        tower |= {"intermediate_size": width * MERGE**2, "projector_input_dim": inner, "projector_output_dim": inner}
        tower["vision_output_dim"] = inner
        ids["image_token_index"] = IMAGE
    return CONFIG_MAPPING[model_type](text_config=text, vision_config=tower, tie_word_embeddings=tied, **ids)


def draw_images(config: PreTrainedConfig, seed: int) -> list[tuple[int, int]]:
    """Heights and widths in patches: all the same where the tower knows one size.

    Else an image is one window high, or whole windows both ways: windows of other images are cut at the edges in a way that
    the number of patches alone does not tell.
    """
    if config.model_type in SQUARE:
        size, patch = config.vision_config.image_size, config.vision_config.patch_size
        side = size[0] // patch[0] if isinstance(size, (list, tuple)) else size // patch
        return [(side, side)] * (2 + seed)
    random = Random(f"images {seed}")
    wide = [(WINDOW, MERGE * random.randint(1, 5)) for _ in range(random.randint(1, 3))]
    return [*wide, (2 * WINDOW, WINDOW * random.randint(1, 2))]


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """The model, with unfused attention and the experts as batched matmuls."""
    for part in (config, config.text_config, config.vision_config):
        part._experts_implementation = "batched_mm"
    return AutoModelForImageTextToText.from_config(config, attn_implementation="eager")


def _tokens_of(model_type: str, patches: int) -> int:
    """Tokens of the language model that an image of so many patches becomes."""
    if model_type == "llava_onevision":
        return patches + 1
    return patches if model_type == "paligemma" else patches // MERGE**2


class Batch:
    """One sequence of text with images in it.

    Attributes:
        length: tokens of the sequence.
        patches: patches of each image.
    """

    def __init__(self, model: PreTrainedModel, images: list[tuple[int, int]]) -> None:
        self._model = model
        self.patches = [height * width for height, width in images]
        tokens = [1]
        for patches in self.patches:
            tokens += [START, *[IMAGE] * _tokens_of(model.config.model_type, patches), END, 3]
        self.length = len(tokens)
        tower = model.config.vision_config
        ids = torch.tensor([tokens])
        self._inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        if model.config.model_type in SQUARE:
            size = tower.image_size[0] if isinstance(tower.image_size, (list, tuple)) else tower.image_size
            pixels = torch.ones(len(images), tower.num_channels, size, size)
            if model.config.model_type in ("idefics3", "smolvlm"):
                pixels = pixels[None]
            if model.config.model_type == "llava_onevision":
                pixels = pixels[:, None]  # one tile each
                self._inputs["image_sizes"] = torch.tensor([[size, size]] * len(images))
                self._inputs["batch_num_images"] = torch.tensor([len(images)])
            self._inputs["pixel_values"] = pixels
            if model.config.model_type == "gemma3":
                self._inputs["token_type_ids"] = (ids == IMAGE).int()
            return
        pixels = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
        self._inputs["pixel_values"] = torch.zeros(sum(self.patches), pixels)
        self._inputs["image_grid_thw"] = torch.tensor([[1, height, width] for height, width in images])
        if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
            self._inputs["mm_token_type_ids"] = (ids == IMAGE).int()

    def forward(self) -> int:
        """FLOPs of one forward pass."""
        return count(lambda: self._model(**self._inputs))

    def training(self) -> int:
        """FLOPs of one forward and one backward pass."""
        return count(lambda: self._model(**self._inputs).logits.sum().backward())
