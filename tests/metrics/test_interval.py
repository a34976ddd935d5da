"""From sums to an interval: what is priced, what is unknown, and what nobody reads."""

from __future__ import annotations

from typing import Any

import pytest
from small_models import AUDIO

from bridge.flops import compile_plan
from bridge.metrics.instruments import Instruments
from bridge.metrics.interval import Intervals, Sums, never_read, pipeline_stages
from bridge.metrics.peak import UNKNOWN
from bridge.metrics.place import Place
from bridge.metrics.totals import Totals
from bridge.metrics.vector import REPLICA_WORK, VectorLayout

MODEL = {
    "num_layers": 4,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "ffn_hidden_size": 24,
    "vocab_size": 32,
    "make_vocab_size_divisible_by": 1,
}
LENGTHS = [5, 9, 30]


def made(plan: Any, place: Place = Place()) -> tuple[Intervals, VectorLayout]:  # noqa: B008
    layout = VectorLayout(plan.statistics if plan else (), place)
    return Intervals(plan, place, layout, Instruments(), UNKNOWN), layout


def vector(layout: VectorLayout, plan: Any, lengths: list[int], **counters: Any) -> list[int]:
    values = layout.zeros()
    measured = plan.measure(lengths) if plan else []
    values[: len(measured)] = measured
    values[layout.index["sequences"]], values[layout.index["tokens"]] = len(lengths), sum(lengths)
    for name, value in counters.items():
        layout.add(values, name, value)
    return values


def sums(work: list[int], timed: list[int], **fields: Any) -> Sums:
    return Sums(
        **{
            "work": work,
            "timed": timed,
            "sampled": [],
            "maxima": [],
            "steps": 3,
            "timed_steps": 2,
            "seconds": 0.5,
            "overhead_seconds": 0.25,
            **fields,
        }
    )


@pytest.fixture(scope="module")
def plan():
    return compile_plan(MODEL, "exact")


def test_the_work_of_a_vector(plan):
    intervals, layout = made(plan, Place(replicas=2, world=2))
    values = vector(
        layout,
        plan,
        LENGTHS,
        micro_batches=2,
        positions=64,
        unlearned_tokens=9,
        data_wait_ns=3_000_000_000,
        **{REPLICA_WORK: [7, 8]},
    )
    work = intervals.work_of(values, 4)
    assert (work.steps, work.flops, work.tokens, work.sequences) == (4, plan.flops(LENGTHS), 44, 3)
    assert (work.positions, work.unlearned_tokens, work.unread_micro_batches) == (64, 9, 0)
    assert work.data_wait_seconds == 1.5  # a mean over the replicas
    assert (work.replica_work, work.stage_work) == ([7, 8], [])
    assert (work.formats, work.hardware_flops) == ({}, None)  # what only rates need
    assert intervals.priced(values) == plan.flops(LENGTHS)


@pytest.mark.parametrize(("read", "known"), [(0, False), (1, True)])
def test_what_was_not_read_leaves_a_lower_bound_or_nothing(plan, read, known):
    intervals, layout = made(plan, Place(replicas=2, world=2))
    lengths = LENGTHS if read else []
    work = intervals.work_of(vector(layout, plan, lengths, micro_batches=read, unread_micro_batches=1, **{REPLICA_WORK: [7, 8]}))
    assert (work.flops, work.tokens) == ((plan.flops(LENGTHS), 44) if known else (None, None))
    assert (work.replica_work, work.unread_micro_batches) == ([], 1)


def test_nothing_at_all_is_zero_and_not_unknown(plan):
    intervals, layout = made(plan)
    work = intervals.work_of(layout.zeros())
    assert (work.flops, work.tokens, work.steps) == (0, 0, 0)


def test_an_interval_has_all_work_and_the_timed_part_with_its_formats(plan):
    intervals, layout = made(plan)
    every, timed = vector(layout, plan, [*LENGTHS, 7], micro_batches=2), vector(layout, plan, LENGTHS, micro_batches=1)
    totals = Totals(plan, layout)
    totals.add(every)
    totals.add(every)
    interval = intervals.interval(sums(every, timed), totals)
    assert (interval.work.flops, interval.work.steps) == (plan.flops([*LENGTHS, 7]), 3)
    assert (interval.timed.flops, interval.timed.steps, interval.seconds) == (plan.flops(LENGTHS), 2, 0.5)
    assert interval.timed.formats == interval.timed.hardware_formats == plan.evaluate_formats(plan.measure(LENGTHS))
    assert interval.timed.hardware_flops == plan.flops(LENGTHS, passes="hardware")
    assert interval.components == plan.breakdown([*LENGTHS, 7])
    assert (interval.total_flops, interval.total_tokens) == (2 * plan.flops([*LENGTHS, 7]), 2 * 51)
    assert (interval.world_size, interval.overhead_seconds, interval.measured, interval.lower_bound) == (1, 0.25, {}, False)
    assert interval.statistics == {"tokens": 51, "causal_pairs": 15 + 45 + 465 + 28, "sequences": 4}


def test_recomputation_is_hardware_work_and_unknown_recomputation_no_number():
    again = compile_plan(MODEL | {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1})
    intervals, layout = made(again)
    values = vector(layout, again, LENGTHS, micro_batches=1)
    timed = intervals.interval(sums(values, values), Totals(again, layout)).timed
    assert timed.hardware_flops == again.flops(LENGTHS, passes="hardware") > timed.flops
    assert sum(timed.hardware_formats.values()) == timed.hardware_flops

    again.hardware_unknown = ("its kernels are unknown",)
    timed = made(again)[0].interval(sums(values, values), Totals(again, layout)).timed
    assert (timed.hardware_flops, timed.hardware_formats) == (None, {})
    assert sum(timed.formats.values()) == timed.flops == again.flops(LENGTHS)


def test_without_a_plan_there_are_tokens_and_no_flops():
    intervals, layout = made(None)
    values = vector(layout, None, LENGTHS, micro_batches=1)
    interval = intervals.interval(sums(values, values), Totals(None, layout))
    assert intervals.priced(values) == interval.work.tokens == interval.timed.tokens == 44
    assert (interval.work.flops, interval.timed.flops, interval.timed.formats, interval.components) == (None, None, {}, {})
    assert (interval.total_flops, interval.statistics) == (None, {"sequences": 3, "tokens": 44})


# ---- stages ----------------------------------------------------------------------------------------------------------


def test_stages_are_the_jobs_and_their_rules_the_configurations(plan):
    assert pipeline_stages(plan, Place(pipeline=2)) == pipeline_stages(plan, Place(pipeline=2, virtual=1))
    layout = pipeline_stages(plan, Place(pipeline=2, virtual=2))
    assert (layout.pipeline_model_parallel_size, layout.virtual_pipeline_model_parallel_size) == (2, 2)
    assert pipeline_stages(plan, Place(pipeline=4)).virtual_pipeline_model_parallel_size is None
    uneven = compile_plan(MODEL | {"pipeline_model_parallel_size": 2, "num_layers_in_first_pipeline_stage": 1})
    assert pipeline_stages(uneven, Place(pipeline=2)).num_layers_in_first_pipeline_stage == 1


def test_the_work_of_stages_adds_up(plan):
    intervals, layout = made(plan, Place(pipeline=2, world=2))
    stages = intervals.work_of(vector(layout, plan, LENGTHS, micro_batches=1)).stage_work
    output = plan.breakdown(LENGTHS)["output_layer"]
    layers = plan.flops(LENGTHS) - output
    assert stages == [layers // 2, layers // 2 + output]


@pytest.mark.parametrize(("rank", "said"), [(0, 1), (1, 0)])
def test_stages_that_do_not_divide_the_layers_are_one_sentence_of_the_first_rank(plan, caplog, rank, said):
    intervals, layout = made(plan, Place(pipeline=3, world=3, rank=rank))
    work = intervals.work_of(vector(layout, plan, LENGTHS, micro_batches=1))
    assert (work.stage_work, work.flops) == ([], plan.flops(LENGTHS))
    assert [record.getMessage()[:60] for record in caplog.records] == [
        "the work of pipeline stages is not reported: 4 layers do not"
    ] * said


# ---- what is not read ------------------------------------------------------------------------------------------------


def test_components_on_what_is_not_read_have_a_sentence_and_no_number():
    heard = compile_plan(MODEL | {"audio_config": AUDIO}, "exact")
    assert never_read(heard) == [
        "work on audio lengths, which are not read from batches: part or all of audio_model, audio_projection"
    ]
    intervals, layout = made(heard)
    values = vector(layout, heard, LENGTHS, micro_batches=1)
    components = intervals.interval(sums(values, values), Totals(heard, layout)).components
    assert heard.breakdown(LENGTHS).keys() - components.keys() == {"audio_model", "audio_projection"}
    assert components == compile_plan(MODEL, "exact").breakdown(LENGTHS)


def test_a_model_of_text_is_read_in_full(plan):
    assert never_read(plan) == []
