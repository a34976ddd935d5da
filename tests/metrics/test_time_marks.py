"""Marks on real modules, optimizers and megatron-core's configuration, and that nothing of them stays."""

from __future__ import annotations

import copy
import io
import pickle
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bridge.flops import compile_plan
from bridge.metrics import spans
from bridge.metrics.instruments import Instruments
from bridge.metrics.meter import Meter
from bridge.metrics.observed import observed
from bridge.metrics.peak import Peak
from bridge.metrics.place import Place
from bridge.metrics.spans import Phase, Timers
from bridge.metrics.throughput import throughput
from bridge.metrics.time_marks import TIME_PARTS, Times
from bridge.metrics.time_parts import PARTS

SLEEP = 0.02


class Model(torch.nn.Module):
    """Sleeps in its passes."""

    def __init__(self, config=None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        if config is not None:
            self.config = config

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        time.sleep(SLEEP)
        return self.layer(value)


class Optimizer:
    """As megatron-core's: no torch optimizer, a part of a chain with a configuration of its own."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(timers=None)
        self.chained_optimizers = [SimpleNamespace(config=self.config)]

    def step(self):
        time.sleep(SLEEP)
        return True, 1.0, None


def opened(model, optimizer=None, **options):
    kind = Times(Place(), [model], optimizer, **{"every_step": True, **options})
    marks = kind.open()
    assert marks is not None
    return kind, marks


def seconds(marks, steps):
    marks.run()
    for step in steps:
        step()
        marks.end_step()
    return list(marks.spans.steps())[-1].seconds


def test_passes_of_any_model_and_a_torch_optimizer():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, marks = opened(model, optimizer)

    def step():
        output = model(torch.ones(2, 4))
        output.register_hook(lambda gradient: time.sleep(2 * SLEEP))
        output.sum().backward()
        optimizer.step()

    found = seconds(marks, [step])
    assert 3 * SLEEP <= found[Phase.COMPUTE] < 20 * SLEEP
    assert 0 < found[Phase.OPTIMIZER] < 10 * SLEEP
    model.eval()
    assert seconds(marks, [lambda: model(torch.ones(2, 4))])[Phase.COMPUTE] == 0


def test_nothing_stays_where_no_training_is():
    config = SimpleNamespace(timers=None)
    model, optimizer = Model(config), Optimizer()
    plain = Model()
    adam = torch.optim.Adam(plain.parameters())
    for one, of in ((model, optimizer), (plain, adam)):
        _, marks = opened(one, of)
        assert not one._forward_pre_hooks
        marks.run()
        assert spans.listener is marks.spans
        assert bool(one._forward_pre_hooks) == (one is plain)
        marks.pause()
        assert not one._forward_pre_hooks
        assert not one._forward_hooks
        assert not getattr(of, "_optimizer_step_pre_hooks", None)
        assert "step" not in of.__dict__ or one is plain
        assert config.timers is optimizer.config.timers is None
        assert spans.listener is None
        torch.save(one, io.BytesIO())
        marks.run()
        marks.close()
        assert config.timers is None


def test_marks_stand_in_sampled_steps_alone():
    """What a loop has put in the optimizer's place itself is there in every step."""
    model, optimizer = Model(SimpleNamespace(timers=None)), Optimizer()
    own = optimizer.step = lambda: "mine"
    _, marks = opened(model, optimizer, every_step=False, each_lap=True)
    marks.run()
    there = []
    for step in range(4):
        if step == 1:
            marks.start_sample()
        there.append((model.config.timers is not None, optimizer.step is not own))
        assert optimizer.step() == "mine"
        marks.end_step()
        if step == 2:
            marks.lap()  # the next one is a sample
    assert there == [(False, False), (True, True), (False, False), (True, True)]
    marks.pause()
    marks.lap()
    assert (model.config.timers, optimizer.step) == (None, own)
    marks.run()
    assert model.config.timers is not None
    marks.close()
    assert (model.config.timers, optimizer.step, spans.listener) == (None, own, None)


def test_what_batches_took_is_known_without_marks_and_waits_are_torchs_own_between_samples():
    model = Model()
    _, marks = opened(model, every_step=False)
    work = torch._C._distributed_c10d.Work
    own, there = vars(work)["wait"], []

    def slow():
        while True:
            time.sleep(SLEEP)
            yield "batch"

    told: list[int] = []
    data = observed(observed(slow(), lambda *_: None), lambda _, took: told.append(took))  # two callbacks, and one wait
    marks.run()
    for step in range(3):
        if step == 1:
            marks.start_sample()
        next(data), next(data)
        there.append((vars(work)["wait"] is own, spans.listener is None, len(marks.spans._ended)))
        if step == 2:
            marks.pause()
            next(data)  # of an evaluation
            marks.run()
        marks.end_step()
    assert there == [(True, True, 0), (False, False, 4), (True, True, 0)]
    first, sampled, last = (step.seconds[Phase.DATA] for step in marks.spans.steps())
    assert (first, last) == (sum(told[:2]) / 1e9, sum(told[4:6]) / 1e9)
    assert sampled == pytest.approx(sum(told[2:4]) / 1e9, rel=0.5)
    marks.close()
    assert vars(work)["wait"] is own


def test_megatron_cores_timers_are_called_on_every_configuration():
    config = SimpleNamespace(timers=None)
    model, optimizer = Model(config), Optimizer()
    wrapped = torch.nn.Module()
    wrapped.module = model
    wrapped.weight = torch.nn.Parameter(torch.ones(1))
    _, marks = opened(wrapped, optimizer)

    def step():
        config.timers("forward-compute", log_level=2).start()
        model(torch.ones(2, 4))
        config.timers("forward-compute").stop()
        assert optimizer.step() == (True, 1.0, None)
        optimizer.config.timers("unknown").start(barrier=True)
        optimizer.config.timers("unknown").stop()

    found = seconds(marks, [step])
    assert SLEEP <= found[Phase.COMPUTE] < 20 * SLEEP
    assert SLEEP <= found[Phase.OPTIMIZER] < 20 * SLEEP
    assert copy.deepcopy(config).timers is None
    assert pickle.loads(pickle.dumps(Timers(marks.spans, 5))) == 5
    marks.close()


def test_where_passes_cannot_be_marked_there_are_no_parts():
    assert Times(Place(), None).open() is None
    assert Times(Place(), [torch.nn.Module()]).open() is None


MODEL = {
    "num_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "ffn_hidden_size": 8,
    "vocab_size": 8,
    "make_vocab_size_divisible_by": 1,
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}


def test_padding_and_recomputation_at_the_peak_by_hand():
    """One rank, two steps of 10 tokens in 16 positions: the linear layers on 6 of them, and the layer's forward pass again."""
    plan = compile_plan(MODEL, "exact")
    peak = 1e6
    kind = Times(Place(), [Model()])
    meter = Meter(plan, Place(), instruments=Instruments([kind], every=10), peak=Peak(peak))
    batch = {"tokens": torch.zeros(1, 16), "attention_mask": torch.arange(16)[None] < 10}
    for step in range(1, 4):
        meter.start_step()
        meter.add_batch(batch)
        time.sleep(SLEEP)
        meter.end_step(step)
    meter.launch(3)
    interval = meter.poll(wait=True).interval
    assert TIME_PARTS in interval.measured
    row = throughput(interval)
    parts = {name: row[f"throughput/time/{name}"] for name in PARTS if f"throughput/time/{name}" in row}
    one = [0] * len(plan.statistics)
    one[[statistic.name for statistic in plan.statistics].index("tokens")] = 6
    vector = plan.measure([10])
    assert parts["ideal"] == pytest.approx(float(plan.flops([10])) / peak)
    assert parts["padding"] == pytest.approx(float(plan.evaluate(one)) / peak)
    assert parts["recompute"] == pytest.approx(float(plan.evaluate(vector, "hardware") - plan.evaluate(vector)) / peak)
    assert parts["recompute"] > 0
    assert sum(parts.values()) == pytest.approx(row["throughput/step_time"])
    assert row["throughput/step_time/median"] == pytest.approx(row["throughput/step_time"], rel=0.5)
    assert row["throughput/step_time/p95"] >= row["throughput/step_time/median"] >= SLEEP
    shared = throughput(replace(interval, world_size=2))  # the same work by two devices
    assert [2 * shared[f"throughput/time/{name}"] for name in ("ideal", "padding", "recompute")] == [
        pytest.approx(parts[name]) for name in ("ideal", "padding", "recompute")
    ]
    meter.close()
