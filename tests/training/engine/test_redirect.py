"""The redirect changes nothing where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from bridge.training.engine import redirect


def test_it_is_inert_where_cuda_is_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(redirect, "_installed", [])
    before = {name: getattr(torch.cuda, name) for name in ("current_device", "synchronize", "Stream", "get_rng_state")}
    redirect.install()
    assert redirect._installed == []
    assert {name: getattr(torch.cuda, name) for name in before} == before
