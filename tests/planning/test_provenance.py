"""Formulas are proved by evaluating them: over the model's own fields each gives the integer it stands beside."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from types import SimpleNamespace

import pytest

from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.flops.reading import read
from bridge.planning.provenance import Size, explain, fields_of, formula_of

#: One of every kind of layer.
KINDS = {
    "llama3-8b": "megatron",
    "deepseek-v3.2": "exact",
    "deepseek-v4-flash": "megatron",
    "qwen3-next-80b-a3b-mtp": "exact",
    "nemotron-h-8b": "megatron",
    "nemotron-3-super-120b-a12b": "executed",
    "gemma4-26b-a4b": "maxtext",
    "qwen2.5-vl-7b": "exact",
    "gpt-oss-20b": "exact",
    "llama4-scout-17b-16e": "exact",
}


def namespace(config):
    model = read(config)
    names = {**vars(model.shape), "ceil": ceil, "max": max}
    for part in ("vision", "audio", "diffusion"):
        inner = getattr(model, part)
        names[f"{part}_config"] = inner and SimpleNamespace(**vars(inner))
    if config.peft is not None:
        names["peft"] = config.peft
    return names


def row_key(row):
    return row.component, row.name, row.rows, row.k, row.n, row.times, row.layers


@pytest.mark.parametrize(("name", "convention"), KINDS.items())
def test_every_formula_gives_its_integer(name, convention):
    config = load_recipe(name, ["peft={kind: lora, dim: 5}"] if name == "qwen2.5-vl-7b" else [], validate=False)
    names = namespace(config)
    plan = compile_plan(config, convention)
    sizes = {statistic.name: statistic.sizes for statistic in plan.statistics}
    origins = explain(config, convention)
    assert [row_key(origin.row) for origin in origins] == [row_key(row) for row in plan.table([4096], [1024])]
    for origin in origins:
        formulas = (origin.k, origin.n, *origin.rows)
        assert [eval(formula, {}, names) for formula in formulas] == [origin.row.k, origin.row.n, *sizes[origin.row.rows]]
        times, _, denominator = origin.times.partition("/")
        assert Fraction(eval(times, {}, names), int(denominator or 1)) == origin.row.times


def test_a_diffusion_transformer():
    sizes = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 8, "patch_size": 2}
    overrides = [f"model.diffusion_config={{{', '.join(f'{name}: {value}' for name, value in sizes.items())}}}"]
    config = load_recipe("tiny", overrides, validate=False)
    names = namespace(config)
    origins = explain(config, "exact")
    assert [row_key(origin.row) for origin in origins] == [row_key(row) for row in compile_plan(config, "exact").table([64])]
    for origin in origins:
        assert [eval(formula, {}, names) for formula in (origin.k, origin.n)] == [origin.row.k, origin.row.n]
    prefix = "diffusion_config."
    assert {name.removeprefix(prefix) for name in origins[0].fields} == set(sizes) - {"num_layers"}


def test_a_dense_layer_by_hand():
    origins = {origin.row.name: origin for origin in explain(load_recipe("llama3-8b", validate=False))}
    heads = "(hidden_size // num_attention_heads)"
    assert origins["linear_qkv"].k == "hidden_size"
    assert origins["linear_qkv"].n == f"{heads}*num_attention_heads + 2*{heads}*num_query_groups"
    assert origins["linear_fc1"].n == "2*ffn_hidden_size"
    assert origins["linear_fc1"].fields == ("hidden_size", "ffn_hidden_size")
    assert origins["linear_fc1"].switches == ("gated_linear_unit",)
    assert origins["linear_fc2"].switches == ()
    multiple = "make_vocab_size_divisible_by*tensor_model_parallel_size"
    assert origins["output_layer"].n == f"ceil(vocab_size / ({multiple}))*{multiple}"


def test_switches_by_hand():
    def switches(name, *overrides):
        return {
            (origin.row.component, origin.row.name, origin.row.rows): origin.switches
            for origin in explain(load_recipe(name, overrides, validate=False), "exact")
        }

    gemma = switches("gemma3-4b")
    assert gemma["core_attention", "query_key", "causal_pairs"] == ("window_size", "window_attn_skip_freq")
    assert gemma["core_attention", "query_key", "window_pairs[1024]"] == ("window_attn_skip_freq",)
    assert gemma["self_attention", "linear_proj", "tokens"] == ()
    # An output gate doubles the queries; linear attention takes three layers of four.
    gated = switches("qwen3-next-80b-a3b")
    assert gated["self_attention", "linear_qkv", "tokens"] == ("attention_output_gate", "experimental_attention_variant")
    frozen = switches("llama3-8b", "peft={kind: freeze, freeze: [linear_fc2]}")
    assert "peft" in frozen["mlp", "linear_fc2", "tokens"]
    assert "peft" not in frozen["self_attention", "linear_proj", "tokens"]


def test_sizes_calculate_like_integers():
    a, b = Size.of_field("a", 12), Size.of_field("b", 5)
    names = {"a": 12, "b": 5, "ceil": ceil}
    for value, formula, fields in (
        (3 + a * 2 - b, "2*a + 3 - b", ("a", "b")),
        (2 * a * b + b * a, "3*a*b", ("a", "b")),
        (a - a, "0", ()),
        (b**2 * a, "a*b**2", ("a", "b")),
        (a // 5, "(a // 5)", ("a",)),
        (100 // a, "(100 // a)", ("a",)),
        ((a + 1) // b // 2, "(((a + 1) // b) // 2)", ("a", "b")),
        (-(-a // b) * b, "b*ceil(a / b)", ("b", "a")),
        (a * True, "a", ("a",)),
        (a * False, "0", ()),
        (7 - a, "-a + 7", ("a",)),
    ):
        assert (formula_of(value), fields_of(value)) == (formula, fields)
        assert eval(formula, {}, names) == value
    assert (a == 12, hash(a), str(a), f"{a}") == (True, hash(12), "12", "12")
    assert (formula_of(4), fields_of(4), formula_of(True)) == ("4", (), "1")
    assert formula_of(Fraction(a).numerator) == "a"
    with pytest.raises(TypeError):
        a + "1"
