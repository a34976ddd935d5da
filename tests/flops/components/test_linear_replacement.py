"""One square matrix in place of an attention or of an MLP."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bridge.flops.reading import read
from bridge.flops.terms import Role
from bridge.planning.kv_cache import layer_caches
from tests.flops.components.blocks import SMALL, executed, in_layer, priced

BLOCKS = {"block_configs": [{"attention": {"replace_with_linear": True}, "ffn": {"replace_with_linear": True}}]}


@pytest.mark.parametrize(
    ("fields", "attention", "mlp"),
    [
        ({}, False, False),
        ({"add_bias_linear": True}, True, True),
        ({"add_proj_bias": True}, True, False),
        ({"add_mlp_bias": True}, False, True),
        ({"add_qkv_bias": True}, False, False),
    ],
)
def test_a_matrix_with_the_bias_of_what_it_replaces(fields, attention, mlp):
    for channel, bias in ((False, attention), (True, mlp)):
        matrix = nn.Linear(12, 12, bias=bias)
        terms = in_layer(BLOCKS | fields, channel=channel)
        assert priced(terms, sequence_lengths=[7]) == executed(matrix, lambda: matrix(torch.zeros(7, 12)))  # noqa: B023


def test_the_matrix_is_the_module_itself():
    (mixer,), (channel,) = in_layer(BLOCKS), in_layer(BLOCKS, channel=True)
    assert [(term.path, term.roles, term.component) for term in (mixer, channel)] == [
        ("self_attention", Role.NONE, "linear_replacement"),
        ("mlp", Role.MLP, "linear_replacement"),
    ]


def test_nothing_is_kept():
    assert layer_caches(read(SMALL | BLOCKS).shape) == [[]]
