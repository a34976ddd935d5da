"""What a rank says when another one is lost, and when another one is silent."""

from __future__ import annotations

import pytest

from bridge.training import exit as ending

SILENT = "another rank did not answer within train.distributed_timeout_minutes ({}): its machine is cut off, gone or much slower."
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
