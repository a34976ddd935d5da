"""Compute time of real modules' passes, and the factors of a straggler."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from bridge.flops import compile_plan
from bridge.metrics import stragglers
from bridge.metrics.instruments import Instruments
from bridge.metrics.meter import Meter
from bridge.metrics.place import Dimension, Place
from bridge.metrics.stragglers import ComputeTime, ComputeTimer, ComputeTimes, open_compute_timer, ranked, unranked
from bridge.metrics.throughput import throughput
from bridge.metrics.timing import HostClock


class Ticks:
    """A clock that each mark moves by 1 second; ``behind`` marks are not reached yet."""

    def __init__(self) -> None:
        self.now, self.behind = 0, 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def reached(self, mark: int) -> bool:
        return mark <= self.now - self.behind

    def seconds(self, start: int, end: int) -> float:
        return end - start


class Model(torch.nn.Module):
    def __init__(self, *, recompute: bool = False, output=lambda value: value) -> None:
        super().__init__()
        self.layer, self.recompute, self.output = torch.nn.Linear(4, 4), recompute, output

    def forward(self, value: torch.Tensor):
        if self.recompute:
            return self.output(checkpoint(self.layer, value, use_reentrant=True))
        return self.output(self.layer(value))


def a_pass(model) -> None:
    output = model(torch.ones(2, 4, requires_grad=True))
    while not isinstance(output, torch.Tensor):
        output = output[max(range(len(output)))] if isinstance(output, (list, tuple)) else output["loss"]
    output.sum().backward()


OUTPUTS = {
    "tensor": lambda value: value,
    "tuple": lambda value: (torch.zeros(1), value),
    "mapping": lambda value: {"logits": [], "loss": value},
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_one_stretch_for_each_forward_and_each_backward_pass(output, recompute):
    timer = ComputeTimer(Ticks(), [model := Model(output=output, recompute=recompute)])
    a_pass(model)
    timer.run()
    for passes in (3, 1):
        for _ in range(passes):
            a_pass(model)
        timer.end_step()
    assert timer.lap() == 1e9 * (2 * 3 + 2 * 1) / 2
    assert timer.lap() is None


def test_overhead_is_the_time_in_the_hooks_each_counted_once(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(stragglers.time, "perf_counter_ns", lambda: next(ticks))
    timer = ComputeTimer(Ticks(), [model := Model()])
    timer.run()
    a_pass(model)
    assert timer.overhead_ns == 4  # into and out of the forward pass, and of the backward pass


def test_evaluation_and_pauses_are_not_compute():
    timer = ComputeTimer(Ticks(), [model := Model()])
    timer.run()
    a_pass(model)
    timer.end_step()
    timer.pause()
    a_pass(model)
    timer.end_step()
    timer.run()
    a_pass(model.eval())
    timer.end_step()
    assert timer.lap() == 2e9


def test_steps_that_the_device_has_not_finished_are_dropped():
    timer = ComputeTimer(clock := Ticks(), [model := Model()])
    timer.run()
    for passes in (2, 1):
        clock.behind = passes
        for _ in range(passes):
            a_pass(model)
        timer.end_step()
    assert timer.lap() == 4e9  # the step of two passes
    clock.behind = 0
    assert timer.lap() is None


def test_the_model_is_left_as_it_was_and_gradients_are_the_same():
    plain, timed = Model(), Model()
    timed.load_state_dict(plain.state_dict())
    timer = ComputeTimer(HostClock(), [timed])
    timer.run()
    a_pass(plain), a_pass(timed)
    assert torch.equal(plain.layer.weight.grad, timed.layer.weight.grad)
    timer.close()
    assert not timed._forward_hooks
    assert not timed._forward_pre_hooks


def test_a_clock_that_fails_is_one_warning_and_never_reaches_the_model(caplog):
    class Broken(Ticks):
        def mark(self):
            raise RuntimeError("no such event")

    class Opened(ComputeTimes):
        def open(self):
            return ComputeTimer(Broken(), [model])

    model = Model()
    instruments = Instruments([Opened(Place())])
    for _ in range(3):
        instruments.run()
        a_pass(model)
        instruments.end_step()
        assert instruments.lap() == {}
    assert [record.getMessage() for record in caplog.records] == [
        "compute time is not reported from here on: RuntimeError: no such event"
    ]


def test_waiting_is_not_compute_on_a_cpu():
    model = Model(output=lambda value: (time.sleep(0.2), value)[1])
    timer = open_compute_timer([model])
    timer.run()
    a_pass(model)
    timer.end_step()
    assert timer.lap() < 0.1e9


@pytest.mark.parametrize("model", [None, [], [None], [torch.nn.Module()]], ids=str)
def test_what_cannot_be_timed_has_no_timer(model):
    assert open_compute_timer(model) is None


def test_compiled_models_are_left_alone():
    model = Model()
    model.compile()
    assert open_compute_timer([model]) is None


# ---- over all ranks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.3, 1.0, 37.5, 9.1e23, float("inf")])
@pytest.mark.parametrize("rank", [0, 1, 131_071, 2**23 - 1])
def test_a_maximum_finds_value_and_rank(value, rank):
    encoded = ranked(value, rank)
    assert 0 <= encoded < 2**63
    decoded, who = unranked(encoded)
    assert who == rank
    assert decoded == pytest.approx(value, rel=2**-29)
    assert ranked(value * 1.0001 + 1e-9, 0) > encoded or value == float("inf")


def test_a_rank_is_placed_in_any_order_of_the_dimensions():
    tensor_first = [Dimension("data_parallel", 3, 4), Dimension("pipeline", 2, 12), Dimension("tensor", 4, 1)]
    places = [tuple(dimension.index(rank) for dimension in tensor_first) for rank in range(24)]
    assert places == [(data, stage, tensor) for stage in range(2) for data in range(3) for tensor in range(4)]


@pytest.mark.parametrize(
    ("time_ratio", "data", "stage", "cause"),
    [
        (1.05, 1.04, 1.0, None),
        (1.8, 1.75, 1.0, "longer data"),
        (1.8, 1.05, 1.0, "slow device"),
        (1.5, 1.0, 1.45, "heavier pipeline stage"),
        (1.8, None, 1.0, None),
        (1.8, 1.0, None, None),
    ],
)
def test_the_largest_factor_is_the_cause(time_ratio, data, stage, cause):
    time = ComputeTime(mean=2.0, slowest=2.0 * time_ratio, rank=3, data=data, stage=stage)
    assert time.cause == cause
    if time.work is not None:
        assert time.work * time.device == pytest.approx(time.imbalance)
    if cause:
        assert cause in time.sentence()


class Given(ComputeTimes):
    """One reading of compute time, without a model."""

    def __init__(self, place, value):
        super().__init__(place)
        self.value = value

    def open(self):
        return self

    def run(self): ...

    pause = end_step = close = run

    def lap(self):
        return self.value


MODEL = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96, "vocab_size": 128}


def job(times, lengths, *, stages=1, monkeypatch=None, ranks_in_vector=64):
    """The report of a job whose ranks have these times; ranks of a replica are the pipeline stages. Summed by hand."""
    from bridge.metrics import meter as module
    from bridge.metrics import stragglers, vector
    from bridge.metrics.reduction import PendingSum, from_limbs, to_limbs

    for one in (vector, stragglers):
        monkeypatch.setattr(one, "MAX_ENTRIES", ranks_in_vector)
    sent = []

    class Kept(PendingSum):
        def __init__(self, limbs, device_limbs=None, *, maxima, **options):
            self.limbs, self.largest = limbs, maxima.tolist()
            sent.append((from_limbs(limbs), self.largest))

        def wait(self):
            return from_limbs(self.limbs)

        def maxima(self):
            return self.largest

    monkeypatch.setattr(module, "PendingSum", Kept)
    plan = compile_plan(MODEL, convention="exact")
    replicas = len(times) // stages
    meters = []
    for rank, time_ns in enumerate(times):
        replica, stage = rank % replicas, rank // replicas
        place = Place(
            rank=rank,
            world=len(times),
            replica=replica,
            replicas=replicas,
            contributes=stage == 0,
            pipeline=stages,
            dimensions=(Dimension("data_parallel", replicas, 1), Dimension("pipeline", stages, replicas)),
        )
        meter = Meter(plan, place, instruments=Instruments([Given(place, time_ns)]))
        meter.end_step()
        meter.add_batch(
            {"tokens": torch.zeros(1, sum(lengths[replica])), "cu_seqlens": torch.tensor([0, *lengths[replica]]).cumsum(0)}
        )
        meter.end_step()
        meter.launch(2)
        meters.append(meter)
    summed = [sum(column) for column in zip(*(values for values, _ in sent), strict=True)]
    reports = []
    for meter in meters:
        meter._pending.sum.limbs = to_limbs(summed)
        meter._pending.sum.largest = [max(column) for column in zip(*(maxima for _, maxima in sent), strict=True)]
        reports.append(meter.poll(wait=True).interval)
    assert all(report.measured == reports[0].measured for report in reports)
    return plan, reports[0]


@pytest.mark.parametrize("ranks_in_vector", [64, 3], ids=["an entry a rank", "a maximum"])
def test_a_slow_device_and_its_place(monkeypatch, ranks_in_vector):
    lengths = [[8], [8], [8], [8]]
    plan, interval = job([100, 100, 100, 300], lengths, monkeypatch=monkeypatch, ranks_in_vector=ranks_in_vector)
    row = throughput(interval)
    assert row["throughput/compute_time/slowest_rank"] == row["throughput/compute_time/slowest_data_parallel"] == 3
    assert row["throughput/compute_time/mean"] == pytest.approx(150e-9)
    assert row["throughput/compute_time/max"] == pytest.approx(300e-9)
    assert row["throughput/imbalance/compute"] == pytest.approx(2.0)
    assert row["throughput/imbalance/work"] == pytest.approx(1.0)
    assert row["throughput/imbalance/device"] == pytest.approx(2.0)
    assert interval.measured["compute time"].cause == "slow device"


@pytest.mark.parametrize("ranks_in_vector", [64, 3], ids=["an entry a rank", "a maximum"])
def test_longer_data(monkeypatch, ranks_in_vector):
    lengths = [[8], [8, 8, 8], [8], [8]]
    plan, interval = job([100, 300, 100, 100], lengths, monkeypatch=monkeypatch, ranks_in_vector=ranks_in_vector)
    assert interval.measured["compute time"].data == pytest.approx(2.0)
    assert interval.measured["compute time"].device == pytest.approx(1.0)
    assert (interval.measured["compute time"].cause, interval.measured["compute time"].at_most) == ("longer data", False)


def test_without_an_entry_a_replica_the_heaviest_one_bounds_the_work(monkeypatch):
    lengths = [[8], [8, 8, 8], [8], [8]]
    _, interval = job([100, 300, 100, 500], lengths, monkeypatch=monkeypatch, ranks_in_vector=3)
    assert (interval.measured["compute time"].rank, interval.measured["compute time"].at_most) == (3, True)
    assert interval.measured["compute time"].device == pytest.approx(1.0)
    assert "data at most 2.00 x" in ComputeTime(mean=1, slowest=5, rank=3, data=2.0, at_most=True).sentence()


def test_a_heavier_stage(monkeypatch):
    lengths = [[8], [8]]
    plan, _ = job([1, 1, 1, 1], lengths, stages=2, monkeypatch=monkeypatch)
    first, last = plan.evaluate_stages(plan.measure([8, 8]), 2)
    _, interval = job([first, first, last, last + 1], lengths, stages=2, monkeypatch=monkeypatch)
    assert interval.measured["compute time"].place == {"data_parallel": 1, "pipeline": 1}
    assert interval.measured["compute time"].stage == pytest.approx(2 * last / (first + last))
    assert interval.measured["compute time"].device == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("ranks_in_vector", [64, 3], ids=["an entry a rank", "a maximum"])
def test_one_rank_without_a_reading_makes_it_unknown(monkeypatch, ranks_in_vector):
    _, interval = job([100, None, 100, 100], [[8]] * 4, monkeypatch=monkeypatch, ranks_in_vector=ranks_in_vector)
    assert "compute time" not in interval.measured
    assert not [key for key in throughput(interval) if "compute" in key]


def test_one_rank_alone_has_a_time_and_no_straggler(monkeypatch):
    _, interval = job([100], [[8]], monkeypatch=monkeypatch)
    row = throughput(interval)
    assert row["throughput/compute_time/max"] == row["throughput/compute_time/mean"] == pytest.approx(1e-7)
    assert not [key for key in row if "imbalance" in key or "slowest" in key]
