"""What a rank says when another one is lost, and when another one is silent."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, Dataset

from bridge.training.errors import ConfigError, on_this_rank
from bridge.training.job import ending

SILENT = (
    "another rank did not answer within train.distributed_timeout_minutes ({}): "
    "its machine is cut off, has failed or is much slower."
)
LOST = "the connection to another rank was lost; see that rank"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            "[/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 15000ms for recv operation to complete",
            SILENT.format("Timed out waiting 15000ms for recv operation to complete"),
        ),
        (
            "wait timeout after 6000ms, keys: /default_pg/0//cpu//0/1",
            SILENT.format("wait timeout after 6000ms, keys: /default_pg/0//cpu//0/1"),
        ),
        (
            "[/gloo/transport/tcp/pair.cc:537] Read error [10.77.0.2]:4285: No route to host.",
            LOST,
        ),
        ("Connection closed by peer [127.0.0.1]:1234", LOST),
    ],
)
def test_one_line_says_what_happened(
    error: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "LINGER_S", 0)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)

    def fail() -> None:
        raise RuntimeError(error)

    assert ending.run(fail, rank=1) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"bridge: rank 1: error: {message}")
    assert said.count("\n") == 1


class OneBadRow(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        if index:
            raise ConfigError("model.vocab_size=7: packed row 1 has other tokens")
        return index


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_mistake_in_the_data_of_one_rank_is_said_by_it(
    num_workers: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "LINGER_S", 0)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)

    def train() -> None:
        with on_this_rank():
            list(DataLoader(OneBadRow(), num_workers=num_workers))

    assert ending.run(train, rank=1) == 1
    assert capsys.readouterr().err == "bridge: rank 1: error: model.vocab_size=7: packed row 1 has other tokens\n"
