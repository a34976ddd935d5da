"""The n-gram memory, beside a torch layer written from the paper's equations; nothing that is installed has one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bridge.flops import compile_plan
from bridge.flops.components.engram import engram
from tests.flops.components.blocks import SMALL, executed, plan_of, priced

#: What a token finds, in 2 n-gram sizes x 3 heads, each row 4 wide.
FOUND, ROW, TAPS, ROWS = 2 * 3 * 4, 4, 3, 70


class Memory(nn.Module):
    """arXiv:2601.07372, equations 3 to 6: keys of every stream against its state, one value for all, a causal convolution."""

    def __init__(self, width: int, streams: int) -> None:
        super().__init__()
        self.width, self.streams = width, streams
        self.table = nn.Embedding(ROWS, ROW)
        self.key, self.value = nn.Linear(FOUND, streams * width), nn.Linear(FOUND, width)
        self.norms = nn.ParameterDict({name: nn.Parameter(torch.ones(streams, width)) for name in ("key", "query", "conv")})
        self.conv = nn.Conv1d(streams * width, streams * width, TAPS, groups=streams * width, bias=False)

    def forward(self, states: Tensor, hashes: Tensor) -> Tensor:
        """states [s, streams, width], hashes [s, FOUND / ROW]."""
        found = self.table(hashes).flatten(1)
        keys = self.key(found).unflatten(1, (self.streams, self.width)) * self.norms["key"]
        gate = torch.einsum("smh,smh->sm", states * self.norms["query"], keys).sigmoid()
        gated = gate[..., None] * self.value(found)[:, None]
        padded = nn.functional.pad((gated * self.norms["conv"]).flatten(1).T, (TAPS - 1, 0))
        return gated + self.conv(padded[None])[0].T.unflatten(1, (self.streams, self.width))


@pytest.mark.parametrize("streams", [1, 3])
def test_a_layer_beside_torch(streams):
    layer, tokens = Memory(12, streams), 7
    terms = engram(
        hidden_size=12, streams=streams, memory_size=FOUND, head_dim=ROW, kernel_size=TAPS, table_rows=ROWS
    )  # fmt: skip
    states, hashes = torch.zeros(tokens, streams, 12), torch.zeros(tokens, FOUND // ROW, dtype=torch.long)
    assert priced(terms, sequence_lengths=[tokens], convention="exact") == executed(layer, lambda: layer(states, hashes))


def test_the_fields_of_a_model():
    """n-grams of 2 to 3 tokens in 3 heads; only layer 1 of 2 has a memory, with the rows of its own entry."""
    fields = {
        "num_layers": 3, "engram_layers": [0, 2], "engram_max_ngram_size": 3, "engram_num_heads": 3, "engram_head_dim": ROW,
        "engram_kernel_size": TAPS, "engram_table_rows": [ROWS, 2 * ROWS],
    }  # fmt: skip
    plan = compile_plan(SMALL | fields, "exact")
    token = FOUND * 12 + FOUND * 12 + 12 + TAPS * 12
    assert plan.breakdown([7], passes="forward")["engram"] == 2 * 2 * 7 * token
    own = {path: entries for path, entries in plan.parameters_by_module().items() if ".engram." in path}
    tables = {path: entries for path, entries in own.items() if path.endswith("embedding")}
    assert tables == {
        "decoder.layers.0.engram.multi_head_embedding": ROWS * ROW,
        "decoder.layers.2.engram.multi_head_embedding": 2 * ROWS * ROW,
    }
    weights = sum(parameter.numel() for name, parameter in Memory(12, 1).named_parameters() if "table" not in name)
    assert sum(own.values()) - sum(tables.values()) == 2 * weights


def test_as_many_streams_as_hyper_connections():
    fields = {"engram_layers": [0], "engram_max_ngram_size": 2, "engram_num_heads": 1, "engram_head_dim": ROW}
    plain, wide = (compile_plan(SMALL | fields | {"hc_mult": copies}, "exact") for copies in (None, 4))
    grown = {name: plan.breakdown([1], passes="forward")["engram"] for name, plan in (("plain", plain), ("wide", wide))}
    key_gate_and_taps = 2 * 12 * (ROW + 1 + 4)
    assert grown["wide"] - grown["plain"] == 3 * key_gate_and_taps


def test_only_what_is_below_needs_a_gradient():
    """With the value projection alone in training, its own gradient is all that runs."""
    terms = engram(hidden_size=12, streams=1, memory_size=FOUND, head_dim=ROW, kernel_size=TAPS, table_rows=ROWS)
    plan = plan_of(terms, "exact", trains=lambda path: path == "engram.value_proj")
    forward = plan.flops([7], passes="forward")
    assert plan.flops([7]) - forward == 2 * 7 * (FOUND * 12 + TAPS * 12)  # its weight, and back through the convolution
