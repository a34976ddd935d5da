"""Every constant that is published is declared, and says what it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bridge.flops import compile_plan
from bridge.metrics.facts import FACTS, Known, constants
from bridge.metrics.host import Host
from bridge.metrics.keys import LAYOUT
from bridge.metrics.peak import DevicePeak, Peak
from bridge.metrics.place import Place

MODEL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96, "vocab_size": 128, "seq_length": 32}
NAMES = [fact.name for fact in FACTS]


def known(**changes):
    plan = compile_plan(MODEL, convention="exact")
    host = Host(config=MODEL, train=SimpleNamespace(train_iters=10, global_batch_size=4))
    return Known(
        **{
            "host": host,
            "plan": plan,
            "convention": "exact",
            "prices": {"exact": {}},
            "place": Place(world=8, replicas=4, tensor=2),
            **changes,
        }
    )


def test_what_is_published_is_declared_in_this_order():
    peak = DevicePeak("H100", "bf16", 1e15, "a datasheet")
    verified = {"verified": "parameters", "verified_details": []}
    found = constants(known(device_peak=peak, peak=Peak(1e15, {"fp8": 2e15}), verified=verified))
    assert list(found) == [name for name in NAMES if name != "incomplete"]  # which comes later
    assert len(set(NAMES)) == len(NAMES)
    assert set(LAYOUT.values()) <= set(NAMES)
    assert (found["device"], found["peak_flops"], found["peaks"]) == ("H100", 1e15, {"fp8": 2e15})
    assert [found[LAYOUT[name]] for name in ("TP", "PP", "DP")] == [2, 1, 4]
    plan = compile_plan(MODEL, convention="exact")
    assert found["planned_flops"] == 10 * 4 * plan.flops([32]) == 10 * 4 * 32 * found["flops_per_token"]
    assert (found["formula_inputs"], found["not_counted"]) == (MODEL, [])


def test_what_is_not_known_is_absent_or_empty():
    found = constants(known(plan=None, host=Host(config=None)))
    assert (found["peak_flops"], found["peak_source"], found["device"]) == (None, "unknown", None)
    assert found["not_counted"] == ["the whole model"]
    assert found["formula_inputs"] == {}
    assert not {"parameters", "flops_per_token", "planned_flops", "peaks", "verified"} & found.keys()


def test_what_trains_is_a_percentage():
    assert constants(known())["trainable_percent"] == 100
    adapted = compile_plan({"model": MODEL, "peft": {"kind": "lora", "dim": 8}}, convention="exact")
    parameters = adapted.parameters()
    assert constants(known(plan=adapted))["trainable_percent"] == pytest.approx(
        100 * parameters["trainable"] / parameters["total"]
    )
    assert parameters["trainable"] * 2 < parameters["total"]
