"""Attention kernels that say themselves which keys a query sees: packed sequences and flex attention."""

import pytest
import torch
from torch import nn

from bridge.flops import compile_plan
from bridge.flops.terms import Kind, Pass
from bridge.tracing import trace

WIDTH, HEADS = 32, 2


class Attending(nn.Module):
    """Queries, keys and values of a linear layer, into ``attend``."""

    def __init__(self, attend):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 50)
        self.attend = attend

    def forward(self, ids, **lengths):
        q, k, v = self.qkv(self.embed(ids)).unflatten(-1, (3, HEADS, WIDTH // HEADS)).unbind(-3)
        return self.out(self.attend(q, k, v, **lengths).flatten(-2))


def pairs(plan, times=1):
    """Pairs of a query and a key, by the length; of the forward pass, or of all three."""
    passes, weights = ("training" if times == 3 else "forward"), WIDTH * 3 * WIDTH + WIDTH * 50
    found = {n: plan.flops([n], passes=passes) - 2 * times * n * weights for n in (7, 100)}
    return {n: flops / (2 * 2 * WIDTH * times) for n, flops in found.items()}


SQUARES = {7: 49, 100: 10_000}
CAUSAL = {7: 28, 100: 5_050}
WINDOW = {7: 4 * 5 // 2 + 4 * 3, 100: 4 * 5 // 2 + 4 * 96}


@pytest.mark.all(but=["*wanted2"])
@pytest.mark.parametrize(("window", "wanted"), [((-1, -1), SQUARES), ((-1, 0), CAUSAL), ((3, 0), WINDOW), ((3, 3), SQUARES)])
def test_packed_sequences(window, wanted):
    varlen = pytest.importorskip("torch.nn.attention.varlen")

    def attend(q, k, v, ends, longest):
        return varlen.varlen_attn(q, k, v, ends, ends, longest, longest, window_size=window)

    def packed(point):
        ends = torch.arange(0, point.batch * point.length + 1, point.length, dtype=torch.int32)
        return {"ids": torch.zeros(point.batch * point.length, dtype=torch.long), "ends": ends, "longest": point.length}

    traced = trace(Attending(attend), packed)
    assert bool(traced.not_counted) == (window == (3, 3)), "a window on both sides has no name, so all pairs are counted"
    assert pairs(compile_plan(traced, "exact")) == wanted
    assert pairs(compile_plan(traced, "executed"), 3) == SQUARES


@pytest.mark.parametrize(("queries", "said"), [(1, True), (2, False)])
def test_fused_attention_without_a_mask(queries, said):
    """Every key is seen, which is certain where the queries are the keys' own tokens."""

    def attend(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (torch.cat([q] * queries, 1), k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)[:, : k.shape[2]]

    traced = trace(Attending(attend), lambda point: {"ids": torch.zeros(point.batch, point.length, dtype=torch.long)})
    assert (traced.not_counted == ()) == said
    assert pairs(compile_plan(traced, "exact"), 3) == {n: queries * square for n, square in SQUARES.items()}


def test_gradients_of_convolutions():
    """Nothing needs the gradient of the first one's input."""
    module = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.Conv1d(6, 5, 1))
    traced = trace(module, lambda point: {"input": torch.ones(point.batch, 4, point.length)})
    ran = {term.path: term.passes for term in traced.traced if term.kind is Kind.LINEAR}
    assert ran == {"0": Pass.FORWARD | Pass.WGRAD, "1": Pass.TRAINING}
    assert compile_plan(traced, "executed").flops([10]) == 2 * 10 * (2 * 3 * 4 * 6 + 3 * 6 * 5)


def test_a_product_that_is_added_in_place():
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.weight = nn.Embedding(50, WIDTH), nn.Parameter(torch.zeros(WIDTH, 8))

        def forward(self, input_ids):
            rows = self.embed(input_ids)
            one = rows.new_zeros(rows.shape[0] * rows.shape[1], 8).addmm_(rows.flatten(0, 1), self.weight)
            stacked = self.weight.expand(rows.shape[0], WIDTH, 8)
            return one.sum() + rows.new_zeros(*rows.shape[:2], 8).baddbmm_(rows, stacked).sum()

    with torch.device("meta"):
        module = Added()
    plan = compile_plan(trace(module), "executed")
    assert (plan.flops([10]), plan.flops([10], passes="forward")) == (3 * 2 * 2 * 10 * WIDTH * 8, 2 * 2 * 10 * WIDTH * 8)


def causal(b, h, q, kv):
    return q >= kv


def window_of(size):
    return lambda b, h, q, kv: causal(b, h, q, kv) & (q - kv < size)


@pytest.mark.all(but=["*wanted2"])
@pytest.mark.parametrize(("mask", "wanted"), [(None, SQUARES), (causal, CAUSAL), (window_of(4), WINDOW)])
def test_flex_attention(mask, wanted):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    def attend(q, k, v, blocks=None):
        return flex.flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=blocks).transpose(1, 2)

    def tokens(point):
        ids = torch.zeros(point.batch, point.length, dtype=torch.long)
        blocks = flex.create_block_mask(mask, None, None, point.length, point.length, device="cpu") if mask else None
        return {"ids": ids, "blocks": blocks}

    traced = trace(Attending(attend), tokens)
    assert traced.not_counted == ()
    assert pairs(compile_plan(traced, "exact")) == wanted
    assert pairs(compile_plan(traced, "executed"), 3) == SQUARES


# A mutant that nothing tells apart: ``_varlen_backward`` may read the sizes of its output, which are those of the values.
