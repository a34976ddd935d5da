"""Images and sound as inputs of a transformers model: the shapes of pixels, and the placeholder tokens of each image.

The model itself determines how many tokens an image takes: its ``get_image_features`` is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bridge.tracing.solving import Point

#: Sides of an image in merged patches; some are odd, so that they do not fill the windows of a tower.
_GRIDS = ((4, 4), (3, 5), (8, 8), (5, 7))


@dataclass(frozen=True)
class PixelForm:
    """One form in which a model takes pixels.

    Attributes:
        values: (number of images, sides of their grid of patches) -> arguments of ``get_image_features``.
        grids: the sides that a grid of patches may have; a single entry if the size of an image is fixed.
    """

    values: Callable[[int, tuple[int, int]], dict[str, Any]]
    grids: tuple[tuple[int, int], ...] = ((0, 0),)


def inner(model: Any) -> Any:
    """The model inside peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def takes_images(model: Any) -> bool:
    """Whether a model has a vision tower that reads ``pixel_values`` and a placeholder token for images."""
    base = inner(model)
    config = getattr(base, "config", None)
    return (
        getattr(config, "vision_config", None) is not None
        and _image_token(config) is not None
        and hasattr(base, "get_image_features")
        and "pixel_values" in inspect.signature(base.forward).parameters
    )


def _image_token(config: Any) -> int | None:
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def forms(model: Any) -> Iterator[PixelForm]:
    """The forms in which a model may take pixels, likelier ones first."""
    config = inner(model).config.vision_config
    asked = inspect.signature(inner(model).get_image_features).parameters
    channels = getattr(config, "num_channels", None) or getattr(config, "in_channels", None) or 3
    if "image_grid_thw" in asked:
        yield PixelForm(partial(_patches, config, channels), _grids(getattr(config, "spatial_merge_size", None) or 2))
    patch: Any = getattr(config, "patch_size", None)
    patch = patch[0] if isinstance(patch, (list, tuple)) and len(set(patch)) == 1 else patch
    if "image_sizes" in asked and isinstance(patch, int):
        merge = getattr(inner(model).config, "spatial_merge_size", None) or 1
        yield PixelForm(partial(_sized_pixels, channels, patch), _grids(merge))
    size: Any = getattr(config, "image_size", None)
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    if isinstance(height, int) and isinstance(patch, int) and height * width <= _MOST * patch * patch:
        yield PixelForm(partial(_pixels, (channels, height, width)))


def _grids(merge: int) -> tuple[tuple[int, int], ...]:
    return tuple((merge * h, merge * w) for h, w in _GRIDS)


#: The most patches of a fixed size of image that is run.
_MOST = 2500


def _pixels(shape: tuple[int, ...], images: int, grid: tuple[int, int]) -> dict[str, Any]:
    return {"pixel_values": torch.ones(images, *shape)}


def _sized_pixels(channels: int, patch: int, images: int, grid: tuple[int, int]) -> dict[str, Any]:
    sides = grid[0] * patch, grid[1] * patch
    return {"pixel_values": torch.ones(images, channels, *sides), "image_sizes": torch.tensor([sides] * images)}


def _patches(config: Any, channels: int, images: int, grid: tuple[int, int]) -> dict[str, Any]:
    frames = getattr(config, "temporal_patch_size", None) or 1
    width = channels * frames * config.patch_size**2
    rows = images * grid[0] * grid[1]
    return {"pixel_values": torch.ones(rows, width), "image_grid_thw": torch.tensor([[1, *grid]] * images)}


def tokens_of(model: Any, values: Mapping[str, Any]) -> int:
    """How many tokens these pixels take."""
    features = inner(model).get_image_features(**values)
    found = getattr(features, "pooler_output", features)
    parts = list(found) if isinstance(found, (list, tuple)) else [found]
    return sum(part.numel() // part.shape[-1] for part in parts)


def given(model: Any, way: PixelForm, tokens: Mapping[int, int], point: Point) -> dict[str, Any]:
    """Arguments of ``forward``: ``point.images`` images at the beginning of each sequence, a token after each, then text."""
    base = inner(model)
    ids = torch.zeros(point.batch, point.length, dtype=torch.long)
    grid = next(grid for grid in way.grids if grid[0] * grid[1] == point.patches)
    for image in range(point.images):  # a token of text after each: what stands together is one image
        start = image * (tokens[point.patches] + 1)
        ids[:, start : start + tokens[point.patches]] = _image_token(base.config)
    is_image = (ids == _image_token(base.config)).long()
    values: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    asked = inspect.signature(base.forward).parameters
    values |= {name: is_image for name in ("token_type_ids", "mm_token_type_ids") if name in asked}
    return values | way.values(point.batch * point.images, grid)


# ---- sound -------------------------------------------------------------------------------------------------------------


def hears(model: Any) -> bool:
    """Whether a model's encoder reads the spectrogram of a clip of fixed length, as Whisper's does."""
    config = getattr(inner(model), "config", None)
    named = getattr(inner(model), "main_input_name", "") == "input_features"
    return named and all(isinstance(getattr(config, name, None), int) for name in ("num_mel_bins", "max_source_positions"))


def heard(model: Any, point: Point) -> dict[str, Any]:
    """One clip and some text for each sequence."""
    config = inner(model).config
    clip = torch.ones(point.batch, config.num_mel_bins, 2 * config.max_source_positions)
    return {
        "input_features": clip,
        "decoder_input_ids": torch.zeros(point.batch, point.length, dtype=torch.long),
        "use_cache": False,
    }
