"""Masks of every type, read for what they say or refused; positions that begin again; lengths that cannot be."""

import dataclasses

import numpy as np
import pytest
import torch

from bridge.metrics.batch_lengths import NoLengths, read_lengths
from bridge.metrics.batch_masks import _positions_on_device, is_doubtful

TOKENS = torch.ones(2, 6, dtype=torch.long)
#: Documents of 4 and 2; of 3, with padding behind.
DOCUMENTS = torch.tensor([[1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]])


def lengths(**batch):
    found = read_lengths(batch)
    return found.sequences.tolist(), int(found.positions)


def seen(documents=DOCUMENTS, *, causal=True):
    """Who sees whom, [b, 1, s, s]."""
    same = (documents[:, :, None] == documents[:, None, :]) & (documents[:, :, None] > 0)
    return (same & torch.ones(6, 6, dtype=torch.bool).tril() if causal else same)[:, None]


def added(visible, low=float("-inf"), dtype=torch.float32):
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, low)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_padding_in_any_type(dtype):
    assert lengths(tokens=TOKENS, attention_mask=(DOCUMENTS > 0).to(dtype)) == ([6, 3], 12)


def test_numbers_of_documents():
    assert lengths(tokens=TOKENS, attention_mask=DOCUMENTS) == ([4, 2, 3], 12)


@pytest.mark.parametrize("low", [float("-inf"), torch.finfo(torch.float32).min, -10_000.0])
def test_what_is_added_to_the_scores(low):
    assert lengths(tokens=TOKENS, attention_mask=added(DOCUMENTS > 0, low)) == ([6, 3], 12)
    assert lengths(tokens=TOKENS, attention_mask=added(DOCUMENTS > 0, low)[:, None, None]) == ([6, 3], 12)
    for causal in (True, False):
        assert lengths(tokens=TOKENS, attention_mask=added(seen(causal=causal), low)) == ([4, 2, 3], 12)


def test_who_sees_whom_either_way_round():
    assert lengths(tokens=TOKENS, attention_mask=seen()) == ([4, 2, 3], 12)
    assert lengths(tokens=TOKENS, attention_mask=~seen()) == ([4, 2, 3], 12)  # Megatron-LM: true is hidden
    square = torch.ones(6, 6, dtype=torch.bool).tril()
    assert lengths(tokens=TOKENS, attention_mask=square) == ([6, 6], 12)
    assert lengths(tokens=TOKENS, attention_mask=~square[None, None]) == ([6, 6], 12)
    assert lengths(tokens=TOKENS, attention_mask=torch.ones(2, 1, 6, 6)) == ([6, 6], 12)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.zeros(2, 6), "neither 0 and 1"),
        (torch.full((2, 6), float("nan")), "down to nan"),
        (-DOCUMENTS, "down to -2"),
        (torch.tensor([[0.0, -3.0]] * 2), r"attention_mask \[2, 2\] beside tokens \[2, 6\]"),
        (torch.ones(2, 9), "beside tokens"),
        (seen(causal=False), "1 may mean seen or hidden"),
        ((DOCUMENTS > 0)[:, None, None], "1 may mean seen or hidden"),
        (added(seen() | (torch.arange(6) < 2)), "neither causal nor bidirectional"),
        ({"full_attention": seen()}, "a dict where an array"),
    ],
)
def test_what_a_mask_does_not_say(mask, words):
    with pytest.raises(NoLengths, match=words):
        lengths(tokens=TOKENS, attention_mask=mask)


def test_positions_that_begin_again():
    flat = torch.tensor([[*range(4), *range(2)], [*range(3), *range(3)]])
    assert lengths(input_ids=TOKENS, position_ids=flat) == ([4, 2, 3, 3], 12)
    assert lengths(input=TOKENS, positions=flat) == ([4, 2, 3, 3], 12)
    assert lengths(input_ids=TOKENS, position_ids=torch.arange(6)[None]) == ([6, 6], 12)
    # Where the mask says who is real, and in megatron-core, positions separate nothing.
    assert lengths(input_ids=TOKENS, position_ids=flat, attention_mask=torch.ones(2, 6)) == ([6, 6], 12)
    assert lengths(tokens=TOKENS, position_ids=flat) == ([6, 6], 12)
    with pytest.raises(NoLengths, match="never rise"):
        lengths(input_ids=TOKENS, position_ids=torch.zeros(2, 6))


def test_flattened_batches_of_transformers():
    assert lengths(input_ids=TOKENS[:1], cu_seq_lens_q=torch.tensor([0, 4, 6]), max_length_q=4) == ([4, 2], 6)


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        (torch.tensor([0, 4, 500]), "ends at 500 of 12"),
        (torch.tensor([-5, 4, 12]), "begins at -5"),
        (torch.tensor([3, 4, 12]), "begins at 3"),
        (torch.tensor([0.0, 4.5, 12.0]), "are not offsets"),
        ([0, 4.5, 12], "are not offsets"),
        (torch.tensor([0, 8, 4]), "falls and rises"),
        (torch.tensor(12), "are not offsets"),
        (torch.tensor([[0, 4, 8], [0, 2, 4]]), "ends at 8 of 6"),
    ],
)
def test_offsets_that_cannot_be(offsets, words):
    tokens = TOKENS if len(getattr(offsets, "shape", ())) == 2 else TOKENS.reshape(1, 12)
    with pytest.raises(NoLengths, match=words):
        lengths(tokens=tokens, cu_seqlens=offsets)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int64])
def test_a_filler_in_any_integer_type(dtype):
    assert lengths(tokens=TOKENS, cu_seqlens=np.array([0, 4, 12, 0, 0], dtype)) == ([4, 8], 12)


def test_nested_tensors():
    rows = [torch.ones(3, dtype=torch.long), torch.ones(5, dtype=torch.long)]
    for layout in (torch.jagged, torch.strided):
        nested = torch.nested.nested_tensor(rows, layout=layout)
        assert lengths(input_ids=nested) == ([3, 5], 8)
    with pytest.raises(NoLengths, match="beside rows of different lengths"):
        lengths(input_ids=nested, attention_mask=torch.ones(2, 5))


def test_forms_of_batches():
    @dataclasses.dataclass
    class Batch:
        input_ids: torch.Tensor
        attention_mask: torch.Tensor

    def read(batch):
        found = read_lengths(batch)
        return found.sequences.tolist(), int(found.positions)

    assert read(Batch(TOKENS, DOCUMENTS > 0)) == ([6, 3], 12)
    assert read(({"input": TOKENS}, TOKENS)) == ([6, 6], 12)
    assert read([{"input_ids": [1, 2, 3]}, {"input_ids": torch.ones(5)}]) == ([3, 5], 8)
    assert read({"input_ids": [[1, 2, 3], [1, 2]]}) == ([3, 2], 5)
    assert read({"input_ids": [[1, 2, 0], [1, 2, 3]], "attention_mask": [[1, 1, 0], [1, 1, 1]]}) == ([2, 3], 6)
    for batch in ((TOKENS, TOKENS), [TOKENS], ({"tokens": TOKENS}, {"tokens": TOKENS}), TOKENS, "tokens"):
        with pytest.raises(NoLengths):
            read_lengths(batch)


def test_a_batch_encoding():
    transformers = pytest.importorskip("transformers")
    batch = transformers.BatchEncoding({"input_ids": TOKENS, "attention_mask": DOCUMENTS > 0})
    found = read_lengths(batch)
    assert (found.sequences.tolist(), found.positions) == ([6, 3], 12)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (DOCUMENTS, True),
        (DOCUMENTS[:1].int(), True),
        (DOCUMENTS[1:], False),  # one document and padding
        (2 * DOCUMENTS[1:], False),
        (torch.zeros(2, 6, dtype=torch.long), False),
        (DOCUMENTS > 0, None),
        (DOCUMENTS.float(), None),
        (DOCUMENTS[None], None),
        (torch.zeros(0, 6, dtype=torch.long), None),
    ],
)
def test_a_mask_that_numbers_documents_is_doubtful_on_a_device(mask, found):
    doubtful = is_doubtful(mask)
    assert (doubtful if doubtful is None else doubtful.item()) is found


def test_positions_that_begin_again_on_a_device():
    """As many lengths as positions, the last ones 0; each row begins anew."""
    positions = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 0, 1, 2]])
    found = _positions_on_device(positions[:, 1:] > positions[:, :-1], (2, 6))
    assert found.tolist() == [3, 3, 2, 1, 3, *[0] * 7]
    assert _positions_on_device(positions[:1, 1:] > positions[:1, :-1], (2, 6)).tolist() == [3, 3, 3, 3, *[0] * 8]
