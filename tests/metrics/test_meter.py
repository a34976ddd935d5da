"""The meter on a device: what was added there comes out of the sum, the work of a replica too, and nothing is read early."""

from __future__ import annotations

import pytest
import torch
from small_models import AUDIO

from bridge.flops import compile_plan
from bridge.flops.projected import projected
from bridge.metrics import meter as module
from bridge.metrics.interval import never_read
from bridge.metrics.meter import Meter
from bridge.metrics.place import Place
from bridge.metrics.reduction import PendingSum, from_limbs
from bridge.metrics.throughput import throughput

MODEL = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96, "vocab_size": 128}


class OnDevice(torch.Tensor):
    """A tensor as if on an accelerator: reading it back is an error."""

    is_cpu = False

    def _sync(self, *args, **kwargs):
        raise AssertionError("read back from the device")

    numpy = item = tolist = cpu = __bool__ = __int__ = __float__ = __index__ = nonzero = _sync


def on_device(*lengths):
    offsets = torch.tensor([0, *lengths, -1]).cumsum(0)
    offsets[-1] = -1
    return {"tokens": torch.zeros(1, sum(lengths)), "cu_seqlens": offsets.as_subclass(OnDevice)}


def on_host(*lengths):
    return {"tokens": torch.zeros(1, sum(lengths)), "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0)}


@pytest.fixture
def arriving(monkeypatch):
    """A sum that arrives when told to, and may read the device, since it is at the end of the way."""
    arrived = {"yes": False}

    class Slow(PendingSum):
        def __init__(self, limbs, device_limbs=None, **options):
            super().__init__(limbs, None if device_limbs is None else device_limbs.as_subclass(torch.Tensor))

        def ready(self):
            return arrived["yes"]

    monkeypatch.setattr(module, "PendingSum", Slow)
    return arrived


def new_meter(**options):
    plan = compile_plan(MODEL, convention="exact")
    return plan, Meter(plan, Place(**options))


def test_host_and_device_batches_add_up_in_one_sum(arriving):
    plan, meter = new_meter(replicas=2, replica=1)
    for first, second in (((5, 9), (30,)), ((7,), (2, 2, 2)), ((11,), (64, 1))):
        meter.add_batch(on_host(*first))
        meter.add_batch(on_device(*second))
        meter.end_step()
    meter.launch(3)
    assert meter.poll() is None
    arriving["yes"] = True
    report = meter.poll()
    lengths = [5, 9, 30, 7, 2, 2, 2, 11, 64, 1]
    assert report.step == 3
    assert report.interval.total_flops == plan.flops(lengths)
    assert report.interval.components == plan.breakdown(lengths)
    assert report.interval.work.replica_work == [0, plan.flops(lengths)]
    assert report.interval.timed.flops == plan.flops(lengths[3:])
    assert report.interval.timed.tokens == sum(lengths[3:])
    assert (report.interval.work.steps, report.interval.timed.steps) == (3, 2)
    assert throughput(report.interval)["throughput/imbalance/data_parallel"] == 2.0
    assert meter.poll() is None


def test_work_of_a_replica_beyond_int64_on_the_device(arriving):
    plan, meter = new_meter(replicas=2)
    batch = {"tokens": torch.zeros(1, 1).expand(1, 2**29), "cu_seqlens": torch.tensor([0, 2**29]).as_subclass(OnDevice)}
    for _ in range(600):
        meter.add_batch(batch)
    meter.end_step()
    meter.launch(1)
    report = meter.poll(wait=True)
    flops = 600 * plan.flops([2**29])
    assert flops > 2**63
    assert report.interval.total_flops == flops
    assert report.interval.work.replica_work[0] == pytest.approx(flops, rel=1e-12)


def test_a_report_that_is_late_is_waited_for_at_the_next_log_point(arriving):
    plan, meter = new_meter()
    meter.add_batch(on_host(5))
    meter.end_step()
    meter.launch(1)
    meter.add_batch(on_host(6))
    meter.end_step()
    assert meter.poll() is None
    meter.launch(2)
    reports = [meter.poll(wait=True), meter.poll(wait=True), meter.poll(wait=True)]
    assert [report and (report.step, report.interval.total_flops) for report in reports] == [
        (1, plan.flops([5])),
        (2, plan.flops([5, 6])),
        None,
    ]


def test_ranks_that_do_not_contribute_look_at_nothing():
    plan, meter = new_meter(contributes=False)
    meter.add_batch(object())
    meter.end_step()
    meter.launch(1)
    assert meter.poll(wait=True).interval.total_flops == 0


def test_steps_count_until_they_are_reported():
    plan, meter = new_meter()
    assert meter.unreported_steps == 0
    for step in (1, 2):
        meter.end_step()
        assert meter.unreported_steps == step
    meter.settle()
    assert meter.unreported_steps == 2
    meter.launch(2)
    assert meter.unreported_steps == 0


def test_a_settled_total_has_every_step_and_sends_nothing_twice(arriving):
    plan, meter = new_meter()
    for lengths in ((5,), (7, 3)):
        meter.add_batch(on_host(*lengths))
        meter.end_step()
    for _ in range(2):
        meter.settle()
        assert meter.totals.flops == plan.flops([5, 7, 3])
        assert meter.poll(wait=True) is None


def test_waiting_for_data_is_a_mean_over_the_replicas_whatever_their_ranks():
    plan, meter = new_meter(replicas=2)
    meter.end_step()
    meter.add_batch(on_host(5), waited_ns=3000)
    meter.end_step()
    meter.launch(2)
    assert meter.poll(wait=True).interval.timed.data_wait_seconds == 3000e-9 / 2


FIRST, LAST = "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"


def one_step(meter, *lengths):
    meter.add_batch(on_host(*lengths))
    meter.end_step()
    meter.launch(1)
    return meter.poll(wait=True).interval


def test_uneven_pipeline_stages_are_priced_as_they_are_built():
    plan = compile_plan({"model": MODEL, "parallel": {"pipeline_model_parallel_size": 3, FIRST: 1, LAST: 1}}, convention="exact")
    meter = Meter(plan, Place(pipeline=3))
    layer = compile_plan({**MODEL, "num_layers": 1}, convention="exact").breakdown([5])
    layer.pop("output_layer")
    work = one_step(meter, 5).work.stage_work
    assert work[:2] == [sum(layer.values()), 2 * sum(layer.values())]
    assert sum(work) == plan.flops([5])


@pytest.mark.parametrize("sizes", [{}, {FIRST: 3}], ids=str)
def test_stages_that_cannot_be_placed_have_no_imbalance(sizes):
    plan = compile_plan({"model": MODEL, "parallel": sizes}, convention="exact")
    assert one_step(Meter(plan, Place(pipeline=3)), 5).work.stage_work == []


@pytest.mark.parametrize(
    ("extra", "named", "absent"),
    [
        ({"encoder_num_layers": 2}, {"encoder", "cross"}, set()),
        ({"audio_config": AUDIO}, {"audio"}, {"audio_model", "audio_projection"}),
    ],
    ids=["encoder", "audio"],
)
def test_inputs_that_batches_are_not_read_for_are_named_and_have_no_number(extra, named, absent):
    plan = compile_plan({**MODEL, **extra}, convention="exact")
    components = one_step(Meter(plan), 5).components
    assert absent == plan.breakdown([5]).keys() - components.keys()
    assert components == {name: flops for name, flops in plan.breakdown([5]).items() if name not in absent}
    assert {sentence.split()[2] for sentence in never_read(plan)} == named


def test_what_only_the_device_finds_impossible_is_unread(arriving):
    plan, meter = new_meter()
    beyond = {**on_device(5, 9), "tokens": torch.zeros(1, 13)}
    documents = torch.tensor([[1, 1, 2, 2], [1, 1, 1, 0]]).as_subclass(OnDevice)
    for batch in (on_device(3, 4), beyond, {"input_ids": torch.zeros(2, 4), "attention_mask": documents}):
        meter.add_batch(batch)
    meter.end_step()
    meter.launch(1)
    report = meter.poll(wait=True)
    assert report.interval.work.unread_micro_batches == 2
    assert report.interval.total_flops == plan.flops([3, 4])
    assert report.interval.lower_bound


def test_positions_on_a_device(arriving):
    plan, meter = new_meter()
    flat = torch.tensor([[*range(4), *range(2)], [*range(3), *range(3)]]).as_subclass(OnDevice)
    meter.add_batch({"input_ids": torch.zeros(2, 6), "position_ids": flat})
    meter.end_step()
    meter.launch(1)
    assert meter.poll(wait=True).interval.total_flops == plan.flops([4, 2, 3, 3])


def test_the_time_of_the_callback_is_milliseconds_a_step():
    _, meter = new_meter()
    meter.end_step()  # warm-up
    meter.overhead_ns += 3_000_000
    for _ in range(2):
        meter.add_batch(on_host(4, 6))
        meter.end_step()
    meter.launch(3)
    assert throughput(meter.poll(wait=True).interval)["throughput/overhead_ms"] == 1.5


def test_without_a_plan_the_work_of_a_replica_is_its_tokens():
    meter = Meter(None, Place(rank=1, replica=1, replicas=2))
    meter.add_batch(on_host(4, 6))
    meter.end_step()
    values = dict(zip(meter.layout.names, meter._counted["warm-up"].drain()[0], strict=True))
    assert meter._intervals.priced(list(values.values())) == 10


def test_passes_of_which_some_work_hangs_count_micro_batches():
    plan = compile_plan({"model": MODEL, "peft": {"kind": "dora", "dim": 8}}, convention="exact")
    meter = Meter(plan)
    batches = ((4, 6), (3,), (5,))
    for lengths in batches:
        meter.add_batch(on_host(*lengths))
    meter.end_step()
    meter.settle()
    assert meter.totals.flops == sum(plan.flops(sequence_lengths=lengths) for lengths in batches)
    assert meter.totals.flops > plan.flops(sequence_lengths=[4, 6, 3, 5])  # whose magnitudes are computed once


def test_a_fused_output_layer_is_priced_by_what_batches_say():
    plan = projected(compile_plan(MODEL, convention="exact"))
    meter = Meter(plan)
    meter.add_batch({**on_host(4, 6), "projected_tokens": 3})
    meter.add_batch({**on_host(5), "projected_tokens": torch.tensor(2)})
    meter.add_batch(on_host(7))  # says nothing: all of it
    meter.end_step()
    meter.settle()
    whole = compile_plan(MODEL, convention="exact").flops([4, 6, 5, 7])
    assert meter.totals.flops == whole - 3 * 2 * 64 * 128 * ((10 - 3) + (5 - 2))


def test_a_fused_output_layer_of_batches_on_a_device():
    plan = projected(compile_plan(MODEL, convention="exact"))
    meter = Meter(plan)
    meter.add_batch({**on_device(4, 6), "projected_tokens": torch.tensor(3).as_subclass(OnDevice)})
    meter.end_step()
    host, device = meter._counted["warm-up"].drain()
    found = [a + b for a, b in zip(host, from_limbs(device.as_subclass(torch.Tensor)), strict=True)]
    assert dict(zip(meter.layout.names, found, strict=True))["projected_tokens"] == 3


# Mutants that nothing tells apart: the initial overhead and waiting time of a meter, which the end of the first step resets.
