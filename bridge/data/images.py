"""``data.kind=images``: pictures of lines of real text, with the text to learn.

A sample is a sequence of pictures, each followed by its text, which is learned; some samples are only text.  A picture
shows a few lines of text, wrapped at a random width, so that pictures differ in height and width.  The lines of text come
from the documents (``data.path``, by default the standard library's sources); what a picture shows, its width and the number of
pictures per sample depend only on (seed, sample number).

Micro-batches are those of :mod:`bridge.data.batching` with two more keys:

==============  ===================  ==========================================================================
key             shape, type          meaning
==============  ===================  ==========================================================================
pixel_values    [p, values] float32  patches of all images, values = channels x temporal_patch_size x patch_size^2
image_grid_thw  [n, 3] int64         frames, rows and columns, in patches, of each image
==============  ===================  ==========================================================================
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from bridge.data.batching import Collate, MicroBatch
from bridge.data.corpus import split
from bridge.data.images_pixels import render, to_patches, wrap
from bridge.data.loader import collate_for, evaluates, schedule_for
from bridge.data.samples import EpochOrder, Segment
from bridge.data.text import read_documents
from bridge.data.tokenizer import Tokenizer, build_tokenizer
from bridge.flops.reading import read
from bridge.flops.shapes import ConfigError, VisionShape

if TYPE_CHECKING:
    from bridge.config.schema import Config

_WORD = re.compile(r"\w+|[^\w\s]+")
_COLUMNS = (2, 6)
"""Minimum and maximum characters per line in a picture."""
_DRAW = 0x1A6E
_SHORTEST = 3
"""Characters of the shortest line that is drawn."""


@dataclass(frozen=True)
class ImageSample:
    """One segment of tokens, and the images for its placeholders, in order."""

    segment: Segment
    patches: list[NDArray[np.float32]]
    grids: list[tuple[int, int, int]]


class ImageSamples:
    """An endless sequence of samples, indexed by the global sample number."""

    def __init__(self, lines: Sequence[str], tokenizer: Tokenizer, vision: VisionShape, cfg: Config) -> None:
        """``lines``: the text to show."""
        assert cfg.model.image_token_id is not None
        self.lines = lines
        self.vision = vision
        self._tokenizer = tokenizer
        self._image_token_id = cfg.model.image_token_id
        self._seq_length = cfg.model.seq_length or 0
        self._cell = vision.patch_size * vision.spatial_merge_size
        self._most = cfg.data.images_per_sample
        self._seed = cfg.train.seed
        self._order = EpochOrder(np.arange(len(lines)), cfg.train.seed)

    def samples_per_epoch(self) -> int:
        """The number of lines."""
        return len(self.lines)

    def _line(self, index: int) -> str:
        return self.lines[self._order[index]]

    def __getitem__(self, index: int) -> ImageSample:
        """Sample ``index``: the first words of a line, each after its picture; or the line without pictures."""
        line = self._line(index)
        draw = np.random.default_rng([self._seed, _DRAW, index])
        count = int(draw.integers(0, self._most + 1))
        texts = _WORD.findall(line)[:count] if count else [line]
        tokens: list[NDArray[np.int64]] = []
        learned: list[NDArray[np.bool_]] = []
        patches, grids = [], []
        for text, encoded in zip(texts, self._tokenizer.encode([f"{text}\n".encode() for text in texts]), strict=True):
            cells = 0
            if count:
                width = int(draw.integers(_COLUMNS[0], _COLUMNS[1] + 1))
                image, grid = to_patches(render(wrap(text, width), self._cell), self.vision)
                cells = len(image) // self.vision.spatial_merge_size**2
                if sum(map(len, tokens)) + cells + len(encoded) > self._seq_length and tokens:
                    break
                patches.append(image)
                grids.append(grid)
            tokens += [np.full(cells, self._image_token_id, dtype=np.int64), encoded.astype(np.int64)]
            learned += [np.zeros(cells, dtype=np.bool_), np.ones(len(encoded), dtype=np.bool_)]
        whole = np.concatenate([*tokens, [self._tokenizer.eod]])[: self._seq_length + 1]
        mask = np.concatenate([*learned, [True]])[: self._seq_length + 1]
        return ImageSample((whole[:-1], whole[1:], mask[1:]), patches, grids)


class ImageData:
    """Training and evaluation images of a run."""

    def __init__(self, cfg: Config) -> None:
        """Read the text; images are drawn when their sample is requested.

        Raises:
            ConfigError: The model has no tower or placeholder, or there is not enough text to show.
        """
        vision = _vision_of(cfg)
        tokenizer = build_tokenizer(cfg.data.tokenizer)
        token = cfg.model.image_token_id
        if token is None or token == tokenizer.eod or (cfg.data.tokenizer == "byte" and token < tokenizer.vocab_size):
            raise ConfigError(
                f"model.image_token_id={token} must be a token number that no text uses: with "
                f"data.tokenizer={cfg.data.tokenizer!r} {tokenizer.vocab_size} is free (and model.vocab_size at least "
                f"{tokenizer.vocab_size + 1})."
            )
        render(["Aa"], vision.patch_size * vision.spatial_merge_size)  # raises here if Pillow is missing
        lines = read_lines(cfg)
        training, evaluation = split(len(lines), cfg.data.eval_fraction, cfg.train.seed)
        samples = partial(ImageSamples, tokenizer=tokenizer, vision=vision, cfg=cfg)
        self.training: ImageSamples = samples([lines[number] for number in training])
        self.evaluation: ImageSamples | None = samples([lines[number] for number in evaluation]) if evaluates(cfg) else None
        self.schedule = schedule_for(cfg)
        self.collate: Collate = partial(collate_images, rows=collate_for(cfg), vision=vision)
        self.fingerprint = f"{len(lines)} lines, crc32 {zlib.crc32(chr(10).join(lines).encode()):08x}"
        have, need = self.training.samples_per_epoch(), self.schedule.global_batch_size
        if have < need:
            raise ConfigError(
                f"train.global_batch_size={need}: one batch needs {need} different samples, and there are {have} lines. "
                "Give more text (data.path, data.max_documents, data.longest_line) or a smaller train.global_batch_size."
            )
        if self.evaluation is not None and self.evaluation.samples_per_epoch() < 1:
            raise ConfigError(f"data.eval_fraction={cfg.data.eval_fraction} leaves no sample for evaluation. Raise it.")


def read_lines(cfg: Config) -> list[str]:
    """The distinct lines of the documents that can be shown: printable ASCII, not too long for a sample.

    Raises:
        ConfigError: there are no such lines.
    """
    longest = min(cfg.data.longest_line, ((cfg.model.seq_length or 0) - 2) // 3)
    lines: dict[str, None] = {}
    for document in read_documents(cfg.data.path, cfg.data.document_separator, cfg.data.max_documents):
        for line in document.decode("utf-8", errors="replace").splitlines():
            text = line.strip()
            if _SHORTEST <= len(text) <= longest and text.isascii() and text.isprintable():
                lines.setdefault(text)
    if not lines:
        raise ConfigError(
            f"data.path={cfg.data.path!r} has no line of {_SHORTEST} to {longest} printable ASCII characters to show. Give "
            "different text, or raise data.longest_line and model.seq_length."
        )
    return list(lines)


def collate_images(samples: Sequence[ImageSample], *, rows: Collate, vision: VisionShape) -> MicroBatch:
    """A micro-batch of samples: their tokens, collated by ``rows``, and all their images, in order."""
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    patches = [image for sample in samples for image in sample.patches]
    grids = [grid for sample in samples for grid in sample.grids]
    return {
        **rows([[sample.segment] for sample in samples]),
        "pixel_values": torch.from_numpy(np.concatenate([np.empty((0, values), np.float32), *patches])),
        "image_grid_thw": torch.tensor(grids, dtype=torch.int64).reshape(-1, 3),
    }


def _vision_of(cfg: Config) -> VisionShape:
    vision = read(cfg).vision
    if vision is None:
        raise ConfigError(
            "data.kind=images needs a model with a vision tower: set model.vision_config (docs/vision.md), or use data.kind=text."
        )
    if cfg.data.batching == "fixed":
        raise ConfigError("data.batching=fixed splits samples, and with them images. Use padded or packed.")
    return vision
