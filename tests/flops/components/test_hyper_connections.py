"""Hyper-connections beside DeepSeek-V4's; what is mixed, entry by entry."""

from __future__ import annotations

import pytest
from oracle.counter import count

from bridge.flops import compile_plan
from bridge.flops.components.hyper_connections import hyper_connections
from bridge.flops.terms import Kind
from tests.flops.components.blocks import macs, plan_of, priced


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_the_maps_of_deepseek_v4(streams):
    """One before the attention, one before the experts; transformers has biases and scales besides."""
    pytest.importorskip("transformers")
    import torch
    from transformers import DeepseekV4Config
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

    module = DeepseekV4HyperConnection(DeepseekV4Config(hidden_size=6, hc_mult=streams))
    states = torch.zeros(1, 7, streams, 6)
    terms = hyper_connections(hidden_size=6, multiplicity=streams)
    forward, _, parameters = priced(terms, sequence_lengths=[7], convention="exact")
    assert forward == 2 * count(lambda: module(states))
    assert parameters == 2 * module.fn.numel()


def test_the_sums_around_a_block_entry_by_entry():
    """Of 3 copies: read as one, mixed with each other, written to, around each of two blocks."""
    streams, width = 3, 5
    products = additions = 0
    for _ in ("attention", "experts"):
        for _ in range(width):
            products += streams + streams * streams + streams  # weights of the sum, of the mixtures, of what is written
            additions += (streams - 1) + streams * (streams - 1) + streams
    (mixing,) = [t for t in hyper_connections(hidden_size=width, multiplicity=streams) if t.kind is Kind.ELEMENTWISE]
    assert (mixing.operations.multiplications, mixing.operations.additions) == (products, additions)


def test_maxtext_prices_them_as_products():
    """3 to read and 9 to mix around both blocks, 3 to write once; columns of 5."""
    terms = hyper_connections(hidden_size=5, multiplicity=3)
    maps = 2 * 15 * (9 + 6)
    assert macs(terms, 7, "maxtext") == 7 * (maps + 2 * (3 + 9) * 5 + 3 * 5)
    assert macs(terms, 7, "exact") == 7 * maps
    assert plan_of(terms, "megatron").flops([7]) == 0


def test_under_megatron_cores_names():
    """A map from all streams, four where nothing is said, to n^2 + 2 n numbers, before each of a layer's two blocks."""
    model = {"num_layers": 3, "hidden_size": 6, "num_attention_heads": 2, "vocab_size": 12, "enable_mhc_connections": True}
    for streams, fields in ((4, {}), (2, {"mhc_num_residual_streams": 2})):
        plan = compile_plan(model | fields, "exact")
        assert plan.breakdown([7], passes="forward")["hyper_connections"] == 3 * 2 * 2 * 7 * streams * 6 * (
            streams**2 + 2 * streams
        )
        assert plan.not_counted == ()
    # Megatron-LM's own count has none of it; what "mhc" runs again has no priced matmul.
    assert "hyper_connections" not in compile_plan(model, "megatron").breakdown([7])
    again = compile_plan(model | {"recompute_granularity": "selective", "recompute_modules": ["mhc"]}, "exact")
    assert again.flops([7], passes="hardware") == again.flops([7]) == compile_plan(model, "exact").flops([7])
    off = compile_plan(model | {"enable_mhc_connections": False, "mhc_num_residual_streams": 4}, "exact")
    assert off.flops([7]) == compile_plan({**model, "enable_mhc_connections": None}, "exact").flops([7])
