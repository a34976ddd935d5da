"""A plan for people, notebooks and programs."""

from __future__ import annotations

import json

import pytest

from bridge.flops import compile_plan

SMALL = {"num_layers": 2, "hidden_size": 4, "ffn_hidden_size": 8, "num_attention_heads": 1, "vocab_size": 10}


def test_text():
    plan = compile_plan(SMALL, "exact")
    total = plan.parameters()["total"]
    assert repr(plan) == f"Plan(convention='exact', {total} parameters, statistics: tokens, causal_pairs)"
    assert repr(compile_plan("llama3-8b")) == (
        "Plan(convention='megatron', 8,030,261,248 parameters, statistics: tokens, squared_tokens)"
    )


def test_plain_values():
    plan = compile_plan(SMALL, "exact")
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["version"] == 1
    assert values["parameters"] == plan.parameters()
    matmuls = {row["name"]: row for row in values["matmuls"]}
    assert (matmuls["linear_fc1"]["k"], matmuls["linear_fc1"]["n"], matmuls["linear_fc1"]["layers"]) == (4, 8, 2)
    assert matmuls["linear_fc1"]["forward"] == matmuls["linear_fc1"]["wgrad"] == 2 * 2 * 4 * 8
    units = dict(zip(values["statistics"], plan.measure([7]), strict=True))
    assert plan.flops([7]) == sum(
        units[row["rows"]] * (row["forward"] + row["dgrad"] + row["wgrad"]) for row in values["matmuls"]
    )


def test_a_data_frame():
    pandas = pytest.importorskip("pandas")
    plan = compile_plan(SMALL, "exact")
    frame = plan.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.to_dict("records") == plan.to_dict()["matmuls"]


def test_html_escapes():
    page = compile_plan(SMALL, "exact")._repr_html_()
    assert page.count("<tr>") == 1 + len(compile_plan(SMALL, "exact").to_dict()["matmuls"])
    assert "<td>linear_fc1</td><td>tokens</td><td>4</td><td>8</td>" in page
    strange = compile_plan({"model": SMALL, "peft": type("<b>", (), {})()})
    assert "&lt;b&gt;" in strange._repr_html_()
