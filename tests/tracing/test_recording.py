"""What has data in a run without any: the numbers that a model computes its sizes and positions with."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from bridge.tracing.recording import Recorder


def test_few_whole_numbers_have_data_and_nothing_else():
    with FakeTensorMode(allow_non_fake_inputs=True), Recorder(nn.Linear(2, 2), {}, computes=True).on():
        positions, mask, size = torch.arange(7), torch.ones(3, dtype=torch.bool), torch.zeros(2**20, dtype=torch.uint8)
        real, many = torch.ones(3), torch.zeros(2**20 + 1, dtype=torch.uint8)
        doubled, scaled = 2 * positions, real * positions[:3]
    assert not any(isinstance(made, FakeTensor) for made in (positions, mask, size, doubled))
    assert all(isinstance(made, FakeTensor) for made in (real, many, scaled))
    assert (doubled.tolist(), int(mask.sum()), size.numel()) == (list(range(0, 14, 2)), 3, 2**20)
