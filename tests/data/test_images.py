"""Images of text: what they show, how they become patches and micro-batches, what is learned of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

import torch

from bridge.config import load_recipe
from bridge.config.schema import Config
from bridge.data import images_pixels
from bridge.data.images import ImageData
from bridge.data.images_pixels import render, to_patches, wrap
from bridge.data.loader import open_data
from bridge.flops.shapes import ConfigError, VisionShape
from bridge.metrics.batch_lengths import read_lengths

IMAGE = 257


def config(*overrides: str) -> Config:
    return load_recipe("tiny_vl", ["data.max_documents=200", *overrides], validate=False)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData(config())


def test_the_configuration_names_the_data() -> None:
    assert isinstance(open_data(config()), ImageData)


# ---- pixels ---------------------------------------------------------------------------------------------------------


def test_every_character_has_a_square_of_its_own() -> None:
    page = render(["ab", "a"], 12)
    assert page.shape == (24, 24)
    assert page.dtype == np.uint8
    assert np.array_equal(page[:12, :12], page[12:, :12])  # a and a
    assert not np.array_equal(page[:12, :12], page[:12, 12:])  # a and b
    assert page[12:, 12:].min() == 255  # nothing
    assert page.min() < 100
    assert wrap("abcde", 2) == ["ab", "cd", "e"]


def test_printable_characters_are_told_apart() -> None:
    glyphs = [render([chr(code)], 12) for code in range(33, 127)]
    pictures = {glyph.tobytes() for glyph in glyphs}
    # l, I and | are the same stroke in this font.
    assert len(pictures) >= len(glyphs) - 3


@pytest.mark.parametrize("temporal", [1, 2])
@pytest.mark.parametrize("merge", [1, 2, 3])
def test_patches_are_those_of_transformers(merge: int, temporal: int) -> None:
    """The order of values in a patch and of patches in an image, against the image processor of Qwen2-VL."""
    transformers = pytest.importorskip("transformers")
    size, rows, columns = 4, 2, 3
    pixels = np.random.default_rng(0).integers(0, 256, (rows * merge * size, columns * merge * size, 3), dtype=np.uint8)
    processor = transformers.Qwen2VLImageProcessorPil(
        patch_size=size,
        temporal_patch_size=temporal,
        merge_size=merge,
        do_resize=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    expected = processor([pixels], return_tensors="np")
    vision = VisionShape(
        depth=1, hidden_size=8, patch_size=size, temporal_patch_size=temporal, spatial_merge_size=merge, in_channels=3
    )
    patches, grid = to_patches(pixels, vision)
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    assert patches.dtype == np.float32
    np.testing.assert_allclose(patches, expected["pixel_values"], atol=1e-6)


def test_an_image_must_cut_into_blocks() -> None:
    with pytest.raises(ValueError, match="20 x 16 pixels"):
        to_patches(np.zeros((20, 16), np.uint8), VisionShape(depth=1, hidden_size=8, patch_size=4))


def test_a_missing_pillow_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    images_pixels._pillow.cache_clear()
    images_pixels._glyph.cache_clear()
    with pytest.raises(ConfigError, match="pip install pillow"):
        ImageData(config())


# ---- samples --------------------------------------------------------------------------------------------------------


def blocks(sample: Any) -> list[np.ndarray]:
    """The image of each block of a sample, in the order of its tokens (patches of 6 x 6 pixels, blocks of 12 x 12)."""
    found = []
    for patches in sample.patches:
        tiles = (patches.reshape(-1, 2, 2, 6, 6) * 0.5 + 0.5) * 255
        found += list(tiles.transpose(0, 1, 3, 2, 4).reshape(-1, 12, 12).round().astype(np.uint8))
    return found


def test_an_image_shows_the_text_behind_it(data: ImageData) -> None:
    shown = 0
    for index in range(100):
        sample = data.training[index]
        inputs, labels, *masks = sample.segment
        tokens = [*inputs.tolist(), int(labels[-1])]
        assert labels.tolist() == tokens[1:]
        cells, place = blocks(sample), 0
        assert tokens.count(IMAGE) == len(cells)
        while IMAGE in tokens[place:]:
            first = tokens.index(IMAGE, place)
            last = next(i for i in range(first, len(tokens)) if tokens[i] != IMAGE)
            text = bytes(tokens[last : tokens.index(ord("\n"), last)]).decode()
            image, cells = cells[: last - first], cells[last - first :]
            drawn = [picture for picture in image if picture.min() < 255]
            assert [picture.tobytes() for picture in drawn] == [render([character], 12).tobytes() for character in text]
            place, shown = last, shown + 1
        assert masks[0].tolist() == [label != IMAGE for label in labels]
    assert shown > 100


def test_samples_have_none_one_and_several_images_of_different_sizes(data: ImageData) -> None:
    samples = [data.training[index] for index in range(200)]
    assert {len(sample.grids) for sample in samples} == set(range(9))
    grids = {grid for sample in samples for grid in sample.grids}
    assert len({rows for _, rows, _ in grids}) > 3
    assert len({columns for _, _, columns in grids}) == 6
    assert all(len(sample.segment[0]) <= 128 for sample in samples)


def test_a_sample_follows_from_the_seed_and_its_number(data: ImageData) -> None:
    again, other = ImageData(config()), ImageData(config("train.seed=5"))
    for index in (7, 3, len(data.training.lines) + 2):
        first, second = data.training[index], again.training[index]
        assert np.array_equal(first.segment[0], second.segment[0])
        assert all(np.array_equal(a, b) for a, b in zip(first.patches, second.patches, strict=True))
    assert any(not np.array_equal(data.training[i].segment[0], other.training[i].segment[0]) for i in range(5))
    assert data.fingerprint == again.fingerprint


def test_an_epoch_shows_every_line_once_and_evaluation_shows_others() -> None:
    data = ImageData(config("train.eval_interval=1", "train.eval_iters=1", "data.images_per_sample=1"))
    assert data.evaluation is not None
    assert not set(data.training.lines) & set(data.evaluation.lines)
    lines = [data.training._line(index) for index in range(data.training.samples_per_epoch())]
    assert sorted(lines) == sorted(data.training.lines)


def test_a_sample_too_long_for_the_model_loses_its_last_images() -> None:
    data = ImageData(config("model.seq_length=32"))
    samples = [data.training[index] for index in range(100)]
    assert max(len(sample.segment[0]) for sample in samples) <= 32
    for sample in samples:
        assert len(blocks(sample)) == sample.segment[0].tolist().count(IMAGE)


# ---- micro-batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_a_micro_batch_holds_the_images_of_its_tokens_in_order(batching: str) -> None:
    data = ImageData(config(f"data.batching={batching}"))
    samples = [data.training[index] for index in range(4)]
    batch = data.collate(samples)  # type: ignore[arg-type]
    assert batch["image_grid_thw"].dtype == torch.int64
    assert batch["image_grid_thw"].tolist() == [list(grid) for sample in samples for grid in sample.grids]
    assert batch["pixel_values"].shape == (int(batch["image_grid_thw"].prod(dim=1).sum()), 36)
    assert int((batch["tokens"] == IMAGE).sum()) * 4 == len(batch["pixel_values"])
    lengths = read_lengths(batch)
    assert lengths is not None
    assert lengths.sequences.tolist() == [len(sample.segment[0]) for sample in samples]
    assert lengths.image_patches is not None
    assert lengths.image_patches.tolist() == [rows * columns for sample in samples for _, rows, columns in sample.grids]
    assert int(batch["loss_mask"].sum()) == sum(int(sample.segment[2].sum()) for sample in samples)  # type: ignore[misc]


def test_a_micro_batch_without_images_says_so(data: ImageData) -> None:
    sample = next(sample for sample in (data.training[index] for index in range(100)) if not sample.grids)
    batch = data.collate([sample])  # type: ignore[list-item]
    assert batch["pixel_values"].shape == (0, 36)
    assert batch["image_grid_thw"].shape == (0, 3)
    lengths = read_lengths(batch)
    assert lengths is not None
    assert lengths.image_patches is not None
    assert not lengths.unmeasured_images
    assert len(lengths.image_patches) == 0


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model.vision_config=null"], "model.vision_config"),
        (["data.batching=fixed"], "data.batching=fixed"),
        (["model.image_token_id=null"], "model.image_token_id=None"),
        (["model.image_token_id=65"], "model.image_token_id=65"),
        (["model.image_token_id=256"], "model.image_token_id=256"),
        (["train.global_batch_size=100000"], "train.global_batch_size=100000"),
        (["model.seq_length=8"], "model.seq_length"),
        (["train.eval_interval=1", "train.eval_iters=1", "data.eval_fraction=0"], "data.eval_fraction=0"),
    ],
)  # fmt: skip
def test_errors_name_the_option(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ImageData(config(*overrides))


def test_text_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("one two\n\n  three four\nx\nwith \u00e9 accent\none two\n")
    data = ImageData(config(f"data.path={tmp_path}", "train.global_batch_size=1", "data.eval_fraction=0"))
    assert sorted(data.training.lines) == ["one two", "three four"]
