"""DeepSeek-V4's attention: the weights of transformers' layer, and the pairs that its masks let through."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from oracle.counter import count
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Attention

from bridge.flops import ConfigError, compile_plan
from bridge.flops.layer_pattern import decoder_layers
from bridge.flops.reading import read
from bridge.flops.terms import Kind
from bridge.planning.kv_cache import layer_caches
from tests.flops.components.blocks import SMALL, in_layer, macs, plan_of

#: Width 12, 4 heads of 8; the indexer has 3 heads of 6 and takes 2 keys.
FIELDS = {
    "experimental_attention_variant": "dsv4_hybrid", "q_lora_rank": 5, "qk_head_dim": 6, "qk_pos_emb_head_dim": 2,
    "v_head_dim": 8, "o_groups": 2, "o_lora_rank": 7, "csa_window_size": 3, "dsa_indexer_n_heads": 3, "dsa_indexer_head_dim": 6,
    "dsa_indexer_topk": 2,
}  # fmt: skip
KINDS = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}


def terms(ratio: int, **options: Any) -> list[Any]:
    return in_layer(FIELDS | {"csa_compress_ratios": [ratio]}, **options)


def attention(ratio: int) -> DeepseekV4Attention:
    config = DeepseekV4Config(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=4, head_dim=8, q_lora_rank=5, o_groups=2, o_lora_rank=7,
        qk_rope_head_dim=2, sliding_window=3, index_n_heads=3, index_head_dim=6, index_topk=2, layer_types=[KINDS[ratio]],
        partial_rotary_factor=0.25,
    )  # fmt: skip
    module = DeepseekV4Attention(config, 0)
    for parameter in module.parameters():
        torch.nn.init.ones_(parameter)
    return module


@pytest.mark.parametrize("ratio", KINDS)
def test_every_weight(ratio):
    """What transformers has besides: sinks, and in the compressors a norm and a table of positions."""
    module, tokens = attention(ratio), 9

    def run() -> None:
        for name, layer in module.named_modules():
            if name == "o_a_proj":
                layer(torch.zeros(1, tokens, layer.n_groups, layer.in_features))
            elif isinstance(layer, torch.nn.Linear):
                layer(torch.zeros(1, tokens, layer.in_features))

    found = plan_of([term for term in terms(ratio) if term.kind is not Kind.CORE])
    assert found.flops([tokens], passes="forward") == count(run)
    kept = [name for name, _ in module.named_parameters() if "sinks" not in name and "compressor" not in name]
    kept += [name for name, _ in module.named_parameters() if "compressor" in name and "_proj" in name]
    assert found.parameters()["total"] == sum(module.get_parameter(name).numel() for name in kept)


@pytest.mark.parametrize("tokens", [4, 7, 8, 19])
def test_keys_that_the_indexer_lets_through(tokens):
    module = attention(4)
    _, mask = module.compressor(torch.ones(1, tokens, 12), torch.ones(1, tokens, 5), torch.arange(tokens)[None], None, 0)
    for name in ("compressed_query_key", "compressed_scores_value"):
        assert macs([term for term in terms(4) if term.name == name], tokens) == int((mask == 0).sum()) * 4 * 8


@pytest.mark.parametrize("tokens", [127, 128, 129, 300])
def test_every_finished_block_is_one_key(tokens):
    module, seen = attention(128), 0
    if tokens >= 128:
        _, mask = module.compressor(torch.ones(1, tokens, 12), torch.ones(1, tokens, 5), torch.arange(tokens)[None], None, 0)
        seen = int((mask == 0).sum())
    assert macs([term for term in terms(128) if term.name == "compressed_query_key"], tokens) == seen * 4 * 8


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 11])
def test_the_window_pair_by_pair(tokens):
    window = [term for term in terms(0) if term.name.startswith("window_")]
    pairs = sum(1 for query in range(tokens) for key in range(query + 1) if query - key < 3)
    assert macs(window, tokens) == 2 * pairs * 4 * 8
    # Megatron gives every token three keys, in the width of a value.
    assert macs([term for term in terms(0, convention="megatron") if term.kind is Kind.CORE], tokens, "megatron") == (
        2 * 3 * tokens * 4 * 8
    )


def test_scores_of_the_indexer():
    """Each of 3 heads of 6 scores every finished block of 4; MaxText sums the heads in one more product."""
    pairs = sum((position + 1) // 4 for position in range(19))
    scores = {name: [term for term in terms(4, convention=name) if term.name == "index_scores"] for name in ("exact", "maxtext")}
    assert {name: macs(found, 19) for name, found in scores.items()} == {"exact": pairs * 3 * 6, "maxtext": pairs * 3 * 7}


@pytest.mark.parametrize(
    ("ratio", "name"),
    [(0, "q_lora_rank"), (0, "o_groups"), (0, "o_lora_rank"), (4, "dsa_indexer_n_heads"), (4, "dsa_indexer_head_dim"),
     (4, "dsa_indexer_topk")],
)  # fmt: skip
def test_a_size_that_is_missing_is_named(ratio, name):
    with pytest.raises(ConfigError) as error:
        compile_plan(SMALL | FIELDS | {"csa_compress_ratios": [ratio], name: None})
    assert str(error.value) == f"model.{name} is missing: experimental_attention_variant='dsv4_hybrid' needs a positive integer"


def test_layers_without_an_indexer_need_none():
    fields = FIELDS | dict.fromkeys(("dsa_indexer_n_heads", "dsa_indexer_head_dim", "dsa_indexer_topk"))
    assert compile_plan(SMALL | fields | {"csa_compress_ratios": [128]}).flops([1]) == 3 * compile_plan(
        SMALL | fields | {"csa_compress_ratios": [128]}
    ).flops([1], passes="forward")


def test_what_a_layer_keeps():
    shape = read(SMALL | FIELDS | {"num_layers": 3, "csa_compress_ratios": [0, 4, 128]}).shape
    assert [layer.form for layer in decoder_layers(shape)] == [0, 4, 128]
    kept = [[(cache.name, cache.entries, cache.kept.sizes) for cache in layer] for layer in layer_caches(shape)]
    window = ("keys_and_values", 8, (3,))
    assert kept == [
        [window],
        [window, ("indexer_keys", 6, (4,)), ("compressed_keys", 8, (4,))],
        [window, ("compressed_keys", 8, (128,))],
    ]
