"""Every form in which a micro-batch can say how long its sequences are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bridge.metrics.batch_lengths import NoLengths, read_lengths

TOKENS = torch.zeros(1, 12, dtype=torch.long)


def read(batch):
    """(lengths, positions, [(patches, frames)]) as plain Python."""
    lengths = read_lengths(batch)
    images = []
    if lengths.image_patches is not None:
        images = list(zip(lengths.image_patches.tolist(), lengths.image_frames.tolist(), strict=True))
    return lengths.sequences.tolist(), int(lengths.positions), images


def offsets(*values, dtype=torch.int32):
    """Offsets [n + 1] from numbers; [b, n + 1] from lists."""
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    "batch",
    [
        {"tokens": TOKENS, "cu_seqlens": offsets(0, 3, 4, 9)},
        {"tokens": TOKENS, "cu_seqlens": offsets(0, 3, 4, 9, dtype=torch.int64)},
        {"input_ids": TOKENS, "cu_seqlens": offsets([0, 3, 4, 9])},
        {"tokens": TOKENS.numpy(), "cu_seqlens": np.array([0, 3, 4, 9], np.int32)},
        {"tokens": TOKENS, "cu_seqlens": [0, 3, 4, 9]},
        # Filler behind the end: -1 (Megatron-Bridge), 0, or the last offset once more.
        {"tokens": TOKENS, "cu_seqlens": offsets(0, 3, 4, 9, -1, -1)},
        {"tokens": TOKENS, "cu_seqlens": offsets([0, 3, 4, 9, -1, -1])},
        {"tokens": TOKENS, "cu_seqlens": offsets(0, 3, 4, 9, 0, 0)},
        # The end given apart; what lies behind it is not looked at.
        {"tokens": TOKENS, "cu_seqlens": offsets(0, 3, 4, 9, 77, 5), "cu_seqlens_argmin": torch.tensor(4)},
        {"tokens": TOKENS, "cu_seqlens": offsets([0, 3, 4, 9, 77]), "cu_seqlens_argmin": torch.tensor([[4]])},
        # The argmin of offsets without a filler is 0.
        {"tokens": TOKENS, "cu_seqlens": offsets(0, 3, 4, 9), "cu_seqlens_argmin": torch.tensor([0])},
        # Real lengths and padded ones: Megatron-Bridge's names, then megatron-core's.
        {"tokens": TOKENS, "cu_seqlens": offsets(0, 4, 8, 12), "cu_seqlens_unpadded": offsets(0, 3, 4, 9)},
        {
            "tokens": TOKENS,
            "cu_seqlens": offsets(0, 4, 8, 12, -1),
            "cu_seqlens_argmin": torch.tensor(4),
            "cu_seqlens_unpadded": offsets(0, 3, 4, 9, -1),
            "cu_seqlens_unpadded_argmin": torch.tensor(4),
        },
        {"tokens": TOKENS, "cu_seqlens": offsets(0, 3, 4, 9), "cu_seqlens_padded": offsets(0, 4, 8, 12)},
        {
            "tokens": TOKENS,
            "packed_seq_params": SimpleNamespace(cu_seqlens_q=offsets(0, 3, 4, 9), cu_seqlens_q_padded=offsets(0, 4, 8, 12)),
        },
        {"packed_seq_params": {"cu_seqlens_q": offsets(0, 3, 4, 9), "cu_seqlens_q_padded": offsets(0, 4, 8, 12)}},
        {"cu_seqlens": offsets(0, 4, 8, 12), "cu_seqlens_unpadded": offsets(0, 3, 4, 9)},
        SimpleNamespace(tokens=TOKENS, cu_seqlens=offsets(0, 3, 4, 9)),
        # A mask of real tokens beside offsets does not count.
        {"tokens": TOKENS, "cu_seqlens": offsets(0, 3, 4, 9), "attention_mask": torch.ones(1, 12)},
    ],
)
def test_packed(batch):
    assert read(batch) == ([3, 1, 5], 12, [])


def test_packed_seq_params_of_megatron_core():
    packed = pytest.importorskip("megatron.core.packed_seq_params").PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=offsets(0, 3, 4, 9), cu_seqlens_kv=offsets(0, 3, 4, 9)
    )
    assert read({"tokens": TOKENS, "packed_seq_params": packed}) == ([3, 1, 5], 12, [])


def test_several_packed_rows():
    rows = offsets([0, 3, 4, -1, -1], [0, 2, 4, 6, 7])
    assert read({"tokens": torch.zeros(2, 8), "cu_seqlens": rows}) == ([3, 1, 2, 2, 2, 1], 16, [])
    assert read({"cu_seqlens": rows}) == ([3, 1, 2, 2, 2, 1], 11, [])


def test_empty_segments_are_kept_as_zeros():
    assert read({"tokens": TOKENS, "cu_seqlens": offsets(0, 0, 4, 4, 9, 9)}) == ([0, 4, 0, 5, 0], 12, [])
    assert read({"tokens": TOKENS, "cu_seqlens": offsets(0)}) == ([], 12, [])
    assert read({"tokens": TOKENS, "cu_seqlens": offsets(0, 4, 4, 9, -1)}) == ([4, 0, 5], 12, [])


def test_offsets_that_contradict_each_other():
    with pytest.raises(NoLengths, match="falls and rises"):
        read_lengths({"tokens": TOKENS, "cu_seqlens": offsets(0, 5, 3, 9)})


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_mask_of_real_tokens(dtype):
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=dtype)
    assert read({"tokens": torch.zeros(3, 4), "attention_mask": mask}) == ([3, 1, 0], 12, [])
    # Whatever else than zero marks a real token: the number of its document, say.
    assert read({"tokens": torch.zeros(3, 4), "attention_mask": 3 * mask}) == ([3, 1, 0], 12, [])


def test_padded_shape():
    assert read({"tokens": torch.zeros(3, 4), "attention_mask": None}) == ([4, 4, 4], 12, [])
    assert read({"tokens": torch.zeros(7)}) == ([7], 7, [])
    assert read({"tokens": torch.zeros(0, 4)}) == ([], 0, [])


def test_a_mask_of_who_sees_whom_and_a_loss_mask_say_nothing_about_lengths():
    square = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    loss_mask = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 1]])
    batch = {"tokens": torch.zeros(2, 4), "attention_mask": square, "loss_mask": loss_mask}
    assert read(batch) == ([4, 4], 8, [])


def test_nothing_at_all():
    assert read_lengths(None) is None
    assert read_lengths({}) is None
    with pytest.raises(NoLengths, match="without any of cu_seqlens"):
        read_lengths({"labels": TOKENS})


def test_images_and_videos():
    grid = torch.tensor([[1, 4, 6], [3, 2, 2]])
    tokens = {"tokens": TOKENS}
    expected = ([12], 12, [(24, 1), (4, 3)])
    assert read({**tokens, "image_grid_thw": grid}) == expected
    assert read({**tokens, "image_grid_thw": grid.reshape(1, 2, 3), "pixel_values": torch.zeros(2)}) == expected
    assert read({**tokens, "visual_inputs": SimpleNamespace(pixel_values=None, image_grid_thw=grid)}) == expected
    assert read({**tokens, "image_grid_thw": grid[:1], "video_grid_thw": grid[1:]}) == expected
    assert not read_lengths({**tokens, "image_grid_thw": grid}).unmeasured_images


def test_pixels_without_a_grid_are_noticed():
    assert read_lengths({"tokens": TOKENS, "pixel_values": torch.zeros(1, 3, 8, 8)}).unmeasured_images
    assert read_lengths({"tokens": TOKENS, "visual_inputs": SimpleNamespace(pixel_values=TOKENS)}).unmeasured_images


def test_pixels_of_one_form_are_so_many_images():
    pixels = torch.zeros(5, 3, 8, 8)
    assert read_lengths({"tokens": TOKENS, "pixel_values": pixels}).number_of_images == 5
    assert read_lengths([{"tokens": TOKENS, "pixel_values": pixels}] * 2).number_of_images == 10
    assert read_lengths({"tokens": TOKENS, "pixel_values": torch.zeros(2, 5, 3, 8, 8)}).number_of_images is None


def test_sound_is_as_long_as_what_is_written_down():
    frames = {"input_features": torch.zeros(2, 8, 20), "attention_mask": torch.ones(2, 20, dtype=torch.long)}
    labels = torch.tensor([[5, 6, 7, -100], [5, -100, -100, -100]])
    assert read({**frames, "labels": labels})[:2] == ([3, 1], 8)
    assert read({**frames, "labels": labels, "decoder_input_ids": torch.zeros(2, 6, dtype=torch.long)})[:2] == ([6, 6], 12)
    with pytest.raises(NoLengths, match="without any of"):
        read_lengths({"input_features": torch.zeros(2, 8, 20)})


def test_the_batch_is_left_alone():
    batch = {"tokens": TOKENS, "cu_seqlens": offsets([0, 3, 4, 9, -1])}
    before = {key: value.clone() for key, value in batch.items()}
    read_lengths(batch)
    assert list(batch) == list(before)
    assert all(torch.equal(batch[key], before[key]) for key in batch)


def test_positions_that_an_output_layer_projects():
    batch = {"tokens": torch.zeros(2, 6)}
    assert read_lengths(batch).projected is None
    for number in (5, np.int64(5), torch.tensor(5)):
        found = read_lengths({**batch, "projected_tokens": number})
        assert (type(found.projected), found.projected, found.on_host) == (int, 5, True)
    assert read_lengths([{**batch, "projected_tokens": 5}, {**batch, "projected_tokens": 0}]).projected == 5
    assert read_lengths([{**batch, "projected_tokens": 5}, batch]).projected is None
    on_device = read_lengths({**batch, "projected_tokens": torch.empty((), dtype=torch.int32, device="meta")})
    assert (on_device.projected.device.type, on_device.projected.dtype, on_device.on_host) == ("meta", torch.int64, False)


@pytest.mark.parametrize("number", [-1, 13, 2.5])
def test_projected_positions_that_cannot_be(number):
    with pytest.raises(NoLengths, match=rf"projected_tokens={number} of 12 positions"):
        read_lengths({"tokens": torch.zeros(2, 6), "projected_tokens": number})
