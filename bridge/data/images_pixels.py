"""Draws text as pixels and splits pixels into the patches that a vision tower takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.flops.shapes import ConfigError, VisionShape

Pixels = NDArray[np.uint8]

_MEAN, _DEVIATION = 0.5, 0.5
"""Normalization of pixel values from 0 ... 1 to -1 ... 1, the same for every channel."""


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` characters."""
    return [text[start : start + width] for start in range(0, len(text), width)]


def render(lines: Sequence[str], cell: int) -> Pixels:
    """Draw text in a fixed grid, each character in a square of ``cell`` pixels: [rows x cell, longest line x cell].

    The text is dark on light in Pillow's bundled font, so that every machine draws the same pixels.
    """
    page = np.full((len(lines) * cell, max(map(len, lines)) * cell), 255, dtype=np.uint8)
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            page[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = _glyph(character, cell)
    return page


@lru_cache(maxsize=4096)
def _glyph(character: str, cell: int) -> Pixels:
    image_module, draw_module, font = _pillow(cell)
    image = image_module.new("L", (cell, cell), 255)
    draw_module.Draw(image).text((cell / 2, cell / 2), character, fill=0, font=font, anchor="mm")
    return np.asarray(image)


@lru_cache(maxsize=16)
def _pillow(cell: int) -> Any:
    """Pillow's modules and its own font at a size that fills a cell.

    Raises:
        ConfigError: Pillow is missing, or was built without FreeType.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont

        return Image, ImageDraw, ImageFont.load_default(cell * 0.9)
    except ImportError as error:
        raise ConfigError(
            f"data.kind=images draws its images with Pillow and FreeType, which cannot be loaded ({error}): pip install pillow, "
            "or use data.kind=text."
        ) from error


def to_patches(pixels: NDArray[Any], vision: VisionShape) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """Split an image into the patches that a tower takes.

    Args:
        pixels: uint8 [height, width] or [height, width, channels]; a gray image is used for every channel.  Height and width are
            multiples of patch_size x spatial_merge_size.
        vision: the tower.

    Returns:
        Patches [n, in_channels x temporal_patch_size x patch_size^2], blocks of spatial_merge_size^2 neighbors one after the
        other, and the grid (frames, rows, columns) in patches: one row of ``image_grid_thw``.
    """
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], vision.in_channels, axis=2)
    height, width, channels = pixels.shape
    size, merge = vision.patch_size, vision.spatial_merge_size
    block = size * merge
    if height % block or width % block or not height or not width or channels != vision.in_channels:
        raise ValueError(
            f"an image of {height} x {width} pixels and {channels} channels does not split into blocks of {block} x {block} with "
            f"{vision.in_channels} channels"
        )
    values = ((pixels / 255 - _MEAN) / _DEVIATION).astype(np.float32)
    cut = values.reshape(height // block, merge, size, width // block, merge, size, channels)
    patches = cut.transpose(0, 3, 1, 4, 6, 2, 5)  # block row, block column, row, column, channel, y, x
    patches = patches.reshape(-1, channels, 1, size * size)
    # A still image has equal frames.
    patches = np.repeat(patches, vision.temporal_patch_size, axis=2)
    rows, columns = int(height // size), int(width // size)
    return patches.reshape(rows * columns, -1), (1, rows, columns)
