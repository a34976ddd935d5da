"""Micro-batches that run again: what their counter prices, and what megatron-core's own iterator says of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import RECOMPUTED

from bridge.flops import compile_plan
from bridge.metrics.batch_lengths import BatchLengths, NoLengths
from bridge.metrics.instruments import Instruments, Summed
from bridge.metrics.place import Place
from bridge.metrics.reruns import Rerun, RerunCounter, Reruns, formats_of, is_replayed, may_replay, may_rerun
from bridge.metrics.vector import VectorLayout


@pytest.fixture(scope="module")
def plan():
    return compile_plan(RECOMPUTED, "exact")


def batch(*lengths: int) -> BatchLengths:
    return BatchLengths(np.array(lengths), sum(lengths))


def test_what_runs_again_costs_what_the_hardware_does(plan):
    counter = RerunCounter(plan)
    ((name, flops),) = counter.lap().items()
    assert (name, flops) == (formats_of(plan)[0], 0)
    counter.add(lambda: batch(5, 9))
    counter.add(lambda: batch(30))
    counter.add(lambda: None)  # nothing to price
    assert counter.lap() == {name: plan.flops([5, 9, 30], passes="hardware")}
    assert plan.flops([5], passes="hardware") > plan.flops([5])  # else this told nothing
    assert counter.lap() == {name: 0}


def test_what_is_on_a_device_counts_the_same(plan):
    class There(torch.Tensor):
        is_cpu = False

    counter = RerunCounter(plan)
    counter.add(lambda: BatchLengths(torch.tensor([5, 9]).as_subclass(There), 14))
    assert sum(counter.lap().values()) == plan.flops([5, 9], passes="hardware")


def test_a_batch_that_cannot_be_read_was_said_to_be_then(plan):
    def unread():
        raise NoLengths("no tokens")

    counter = RerunCounter(plan)
    counter.add(unread)
    assert set(counter.lap().values()) == {0}


def test_every_number_format_has_its_slice():
    quantised = compile_plan(RECOMPUTED | {"bf16": True, "fp8": "hybrid", "fp8_recipe": "tensorwise"}, "exact")
    assert sorted(formats_of(quantised)) == ["bf16", "fp8"]
    counter = RerunCounter(quantised)
    kind = Reruns(counter, quantised)
    assert {part.name for part in kind.slices} == {"rerun_flops_bf16", "rerun_flops_fp8"}
    instruments = Instruments([kind])
    assert kind.open() is counter
    counter.add(lambda: batch(5, 9))
    lap = instruments.lap()
    layout = VectorLayout(quantised.statistics, Place(world=2), instruments.slices)
    vector = layout.zeros()
    for _ in range(2):
        for name, value in lap.items():
            layout.add(vector, name, value)
    zeros = layout.zeros()
    found = instruments.measured(Summed(layout, Place(world=2), zeros, vector, zeros, [], lambda values: None))["reruns"]
    by_format = quantised.evaluate_formats(quantised.measure([5, 9]), "hardware")
    assert found == Rerun({name: 2 * flops for name, flops in by_format.items()})
    assert found.metrics(None) == {"throughput/rerun_flops": 2 * quantised.flops([5, 9], passes="hardware")}
    assert Rerun({"bf16": 0, "fp8": 0}).metrics(None) == {}


def test_whether_a_batch_was_given_before_as_megatron_core_says():
    machine = pytest.importorskip("megatron.core.rerun_state_machine")
    machine.destroy_rerun_state_machine()
    machine.initialize_rerun_state_machine(mode=machine.RerunMode.VALIDATE_RESULTS)
    data = machine.RerunDataIterator(iter([1, 2, 3]))
    seen = [(next(data), is_replayed(data)) for _ in range(2)]
    data.rewind()
    seen += [(next(data), is_replayed(data)) for _ in range(2)]
    data.advance()
    seen += [(next(data), is_replayed(data))]
    machine.destroy_rerun_state_machine()
    assert seen == [(1, False), (2, False), (1, True), (2, True), (3, False)]
    assert may_replay(data)
    plain = iter([1])
    assert (may_replay(plain), is_replayed(plain)) == (False, False)


def test_whether_anything_may_run_again_follows_from_megatron_cores_machine():
    machine = pytest.importorskip("megatron.core.rerun_state_machine")
    modes = {mode: mode.name != "DISABLED" for mode in machine.RerunMode}
    machine.destroy_rerun_state_machine()
    assert not may_rerun()
    for mode, runs in modes.items():
        machine.initialize_rerun_state_machine(mode=mode)
        assert may_rerun() is runs, mode
        machine.destroy_rerun_state_machine()
    assert sum(modes.values()) == len(modes) - 1
