"""Blocks that differ from layer to layer: megatron-core's own records say what each one is, a hand what it costs."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.flops.heterogeneous import Block, blocks
from bridge.flops.reading import read
from bridge.planning.kv_cache import layer_caches

#: Width 12, four heads of 3, MLP 20, vocabulary 10.
SMALL = {
    "num_layers": 4,
    "hidden_size": 12,
    "ffn_hidden_size": 20,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 10,
}
BLOCKS = [
    {"attention": {"n_heads_in_group": 4, "no_op": False, "replace_with_linear": False}, "ffn": {"ffn_mult": 2.625}},
    {"attention": {"n_heads_in_group": None, "no_op": True}, "ffn": {"ffn_mult": None, "replace_with_linear": True}},
    {"attention": {"n_heads_in_group": None, "replace_with_linear": True}, "mlp": {"ffn_hidden_size": 8}},
    {"attention": {"num_query_groups": 4}, "ffn": {"ffn_mult": None, "no_op": True}},
]
#: The same of every layer, in multiply-accumulates of one sequence of 5 tokens.
ATTENTION = {groups: 5 * (12 * 3 * (4 + 2 * groups) + 12 * 12) + 2 * 15 * 12 for groups in (1, 2, 4)}
LINEAR, LOGITS = 5 * 12 * 12, 5 * 12 * 10
EXPECTED = ATTENTION[1] + 5 * 2 * 12 * 256 + LINEAR + LINEAR + 5 * 2 * 12 * 8 + ATTENTION[4] + LOGITS


def macs(model: Any) -> int:
    return compile_plan(model, "exact").flops([5], passes="forward") // 2


def test_by_hand():
    assert macs(SMALL | {"block_configs": BLOCKS}) == EXPECTED
    assert macs(SMALL) == 4 * (ATTENTION[2] + 5 * 2 * 12 * 20) + LOGITS


def test_each_layer_stands_on_its_stage_and_keeps_its_own_heads():
    plan = compile_plan(SMALL | {"block_configs": BLOCKS}, "exact")
    second = plan.evaluate_stages(plan.measure([5]), 4, passes="forward")[1]
    assert second == 2 * LINEAR
    kept = layer_caches(read(SMALL | {"block_configs": BLOCKS}).shape)
    assert [[cache.entries for cache in layer] for layer in kept] == [[2 * 3], [], [], [2 * 4 * 3]]


def test_blocks_are_megatron_cores():
    module = pytest.importorskip("megatron.core.transformer.heterogeneous.heterogeneous_config")
    config = module.HeterogeneousTransformerConfig(
        num_layers=4, hidden_size=12, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=20, use_cpu_initialization=True,
        heterogeneous_layers_config_encoded_json=json.dumps({"block_configs": BLOCKS}),
    )  # fmt: skip
    ours = blocks(read(SMALL | {"block_configs": BLOCKS}).shape)
    for number, (block, theirs) in enumerate(zip(ours, config.per_block_parameters, strict=True), 1):
        own = config.get_config_for_layer(number)
        names = {(True, False): "", (False, True): "linear", (False, False): None}
        assert block.attention == names[theirs.attention.no_op, theirs.attention.replace_with_linear]
        assert block.mlp == names[theirs.mlp.no_op, theirs.mlp.replace_with_linear]
        assert (block.num_query_groups or 2) == own.num_query_groups
        assert (block.ffn_hidden_size or 20) == own.ffn_hidden_size
    # The built config says it all by itself.
    container = SimpleNamespace(model=config, vocab_size=10)
    assert compile_plan(container, "exact").flops([5], passes="forward") // 2 == EXPECTED


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 2.625, 3.28125, 5.25])
@pytest.mark.parametrize("hidden", [64, 768, 8192])
def test_factors_of_widths_are_rounded_as_megatron_core_rounds_them(factor, hidden):
    module = pytest.importorskip("megatron.core.transformer.heterogeneous.heterogeneous_config")
    model = {**SMALL, "hidden_size": hidden, "num_layers": 1, "block_configs": [{"ffn": {"ffn_mult": factor}}]}
    (block,) = blocks(read(model).shape)
    assert block == Block(ffn_hidden_size=module.MLPConfig.ffn_mult_to_intermediate_size(factor, hidden))


def test_a_file_and_its_text_are_read(tmp_path):
    path = tmp_path / "blocks.json"
    path.write_text(json.dumps({"block_configs": BLOCKS}))
    for option, value in (
        ("heterogeneous_layers_config_path", str(path)),
        ("heterogeneous_layers_config_encoded_json", path.read_text()),
    ):
        plan = compile_plan(SMALL | {option: value}, "exact")
        assert plan.flops([5], passes="forward") // 2 == EXPECTED
        assert plan.not_counted == ()


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"block_configs"', "fifo"])
def test_what_cannot_be_read_is_named(content, tmp_path):
    path = tmp_path / "blocks.json"
    if content == "fifo":
        os.mkfifo(path)
    elif content is not None:
        path.write_text(content)
    plan = compile_plan(SMALL | {"heterogeneous_layers_config_path": str(path)}, "exact")
    (sentence,) = plan.not_counted
    assert sentence.startswith("heterogeneous_layers_config_path=")
    assert sentence.endswith("blocks that differ from layer to layer are not counted")
    assert plan.flops([5]) == compile_plan(SMALL, "exact").flops([5])


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (BLOCKS[:3], "model.block_configs has 3 entries, but model.num_layers=4: give one per layer"),
        (7, "model.block_configs=7 must be a list with a mapping for each layer"),
        ([7, 7, 7, 7], "must be a list with a mapping for each layer"),
        ([{"attention": 7}] * 4, "model.block_configs[0].attention=7 must be a mapping"),
        ([{"attention": {"n_heads_in_group": 3}}] * 4, "n_heads_in_group=3 does not divide model.num_attention_heads=4"),
        ([{"attention": {"num_query_groups": "2"}}] * 4, "attention.num_query_groups='2' must be a positive integer"),
        ([{"ffn": {"ffn_hidden_size": -5}}] * 4, "model.block_configs[0].ffn.ffn_hidden_size=-5 must be a positive integer"),
        ([{"ffn": {"ffn_mult": "much"}}] * 4, "model.block_configs[0].ffn.ffn_mult='much' must be a positive number"),
    ],
)
def test_what_cannot_be_is_one_sentence(configs, message):
    with pytest.raises(ConfigError) as caught:
        compile_plan(SMALL | {"block_configs": configs})
    assert message in str(caught.value)
