"""What stands in for a loop's data: the same passes, length, attributes, copies and protocol as the thing itself."""

import collections.abc
import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from bridge.metrics.observed import are_chunks, observed

ROWS = [{"tokens": torch.full((4,), number)} for number in range(6)]


def watched(data):
    seen = []
    return seen, observed(data, lambda batch, waited: seen.append(batch))


@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "persistent_workers": True}])
def test_a_loader_gives_every_epoch_anew(options):
    seen, loader = watched(DataLoader(ROWS, batch_size=2, **options))
    passed = [[batch["tokens"].tolist() for batch in loader] for _ in range(3)]
    assert passed[0] == passed[1] == passed[2] == [[[i] * 4, [i + 1] * 4] for i in (0, 2, 4)]
    assert [batch["tokens"].tolist() for batch in seen] == [rows for epoch in passed for rows in epoch]


def test_a_loader_keeps_its_length_attributes_copies_and_pickles():
    real = DataLoader(ROWS, batch_size=2)
    seen, loader = watched(real)
    assert len(loader) == 3
    assert loader.dataset is ROWS
    loader.epoch = 5
    assert real.epoch == 5
    del loader.epoch
    assert not hasattr(real, "epoch")
    for copied in (copy.copy(loader), copy.deepcopy(loader)):
        seen.clear()
        assert (len(copied), sum(1 for _ in copied), len(seen)) == (3, 3, 3)
    assert type(pickle.loads(pickle.dumps(loader))) is DataLoader


def test_what_has_no_length_gets_none():
    _, passing = watched(iter(ROWS))
    assert isinstance(passing, collections.abc.Iterator)
    assert not isinstance(passing, collections.abc.Sized)
    assert iter(passing) is passing


def test_a_generator_stays_one():
    def echo():
        got = "first"
        while True:
            try:
                got = yield got
            except KeyError:
                got = "caught"

    seen, passing = watched(echo())
    assert isinstance(passing, collections.abc.Generator)
    assert [next(passing), passing.send("second"), passing.throw(KeyError())] == ["first", "second", "caught"]
    assert seen == ["first", "second", "caught"]
    passing.close()
    assert list(passing) == []


def test_a_list_of_batches_is_a_list():
    seen, batches = watched(list(ROWS))
    assert (len(batches), batches[2] is ROWS[2], batches == ROWS) == (6, True, True)
    assert all(one is other for one, other in zip(batches, ROWS, strict=True))
    assert len(seen) == 6
    assert [are_chunks(data) for data in (ROWS, [iter(ROWS), None], [])] == [False, True, False]


def test_what_is_iterated_by_index():
    class Rows:
        def __getitem__(self, index):
            return ROWS[index]

    seen, rows = watched(Rows())
    assert sum(1 for _ in rows) == len(seen) == 6


def test_what_holds_no_batches_is_refused():
    with pytest.raises(TypeError, match="takes an iterator or an iterable, not a int"):
        observed(3, print)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_goes_on_where_it_was(workers):
    StatefulDataLoader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    seen, loader = watched(StatefulDataLoader(ROWS, batch_size=2, num_workers=workers))
    passing = iter(loader)
    first = next(passing)["tokens"][:, 0].tolist()
    state = loader.state_dict()
    again_seen, again = watched(StatefulDataLoader(ROWS, batch_size=2, num_workers=workers))
    again.load_state_dict(state)
    rest = [batch["tokens"][:, 0].tolist() for batch in again]
    assert (first, rest) == ([0, 1], [[2, 3], [4, 5]])
    assert (len(seen), len(again_seen)) == (1, 2)
    assert len(loader) == 3
