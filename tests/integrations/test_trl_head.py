"""What TRL's fused head leaves out of its projection; the trainer with it is in ``test_trl.py``."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

import tiny_llama
import torch

from bridge.integrations.trl_head import leaves_out, with_projected

LABELS = torch.tensor([[7, -100, 3, 4], [-100, -100, -100, 9]])


def test_learned_positions_of_a_call():
    call = {"input_ids": LABELS.clamp(min=0), "labels": LABELS, "fused_lm_head": True}
    assert with_projected(call)["projected_tokens"].item() == 3  # the first label is of no position
    assert with_projected({**call, "labels": None, "shift_labels": LABELS})["projected_tokens"].item() == 4
    assert "projected_tokens" not in call


@pytest.mark.parametrize("call", [{"labels": LABELS}, {"labels": LABELS, "fused_lm_head": False}, {"fused_lm_head": True}])
def test_calls_of_which_nothing_is_said(call):
    assert with_projected(call) is call


def test_a_model_without_such_a_head_leaves_nothing_out(monkeypatch):
    model = tiny_llama.model()
    assert not leaves_out(model)
    monkeypatch.setitem(sys.modules, "trl.trainer.utils", SimpleNamespace(__file__="/elsewhere/utils.py"))
    assert not leaves_out(model)
