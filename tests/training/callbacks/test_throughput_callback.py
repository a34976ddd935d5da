"""The callback in one process: what counts, what does not, and what stays when something breaks."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import threading
import weakref
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from callback_driver import MODEL, Loop, config, draw, fixed, packed, padded, positions, real_lengths, state

from bridge.config import from_huggingface
from bridge.flops import ConfigError, compile_plan
from bridge.metrics.instruments import Instruments
from bridge.metrics.meter import Meter
from bridge.metrics.place import Place
from bridge.metrics.throughput import throughput as throughput_keys
from bridge.metrics.time_marks import Times
from bridge.metrics.trackers import JsonlTracker, Trackers
from bridge.report.runs import open_run
from bridge.training.callbacks import CallbackContext, ThroughputCallback
from bridge.training.callbacks.throughput import FACTS, ROWS, sampled_every

pytestmark = pytest.mark.usefixtures("no_measurement")


def plan(convention="megatron"):
    return compile_plan(MODEL, convention=convention)


def flops(lengths, convention="megatron"):
    return plan(convention).flops([s for batch in lengths for s in batch])


def tokens(lengths):
    return sum(map(sum, lengths))


def started(data, convention="megatron", run=None, **options):
    callback = ThroughputCallback(convention, **options)
    return callback, Loop([callback], run or state(config()), data).start()


@pytest.mark.parametrize("form", [packed, padded, fixed])
@pytest.mark.parametrize("convention", ["megatron", "exact", "executed"])
def test_totals_are_the_sum_over_what_ran(form, convention):
    drawn = draw(7, 22)
    callback, loop = started(map(form, drawn), convention)
    loop.steps(11).end()
    real = [real_lengths(form, lengths) for lengths in drawn]
    assert callback.latest["step"] == 11
    assert callback.latest["throughput/total_flops"] == flops(real, convention)
    assert callback.latest["throughput/total_tokens"] == tokens(real)
    rows = loop.manager.user_state[ROWS]
    assert list(rows) == [4, 8, 11]
    for step, first in ((4, 0), (8, 8), (11, 16)):
        interval = real[first : 2 * step]
        assert sum(v for k, v in rows[step].items() if k.startswith("throughput/flops/")) == flops(interval, convention)
        padding = 1 - tokens(interval) / sum(positions(form, lengths) for lengths in drawn[first : 2 * step])
        assert rows[step]["throughput/padding_fraction"] == padding


def test_batches_pass_untouched_and_the_iterator_keeps_its_attributes():
    class Resumable:
        position = 5

        def __iter__(self):
            return self

        def __next__(self):
            return BATCH

    BATCH = packed([3, 4])
    source = Resumable()
    wrapped = ThroughputCallback().observe(source)
    assert next(wrapped) is BATCH
    assert iter(wrapped) is wrapped
    assert wrapped.position == 5
    assert list(ThroughputCallback().observe([None, None])) == [None, None]
    assert ThroughputCallback().observe(None) is None


def test_under_virtual_pipelining_the_first_chunks_iterator_counts():
    drawn = draw(1, 8)
    callback, loop = started([map(packed, drawn), map(packed, drawn), map(packed, drawn)])
    loop.steps(4).end()
    assert callback.latest["throughput/total_flops"] == flops(drawn)


def test_the_first_step_is_in_the_totals_and_not_in_the_rates():
    drawn = draw(2, 8)
    callback, loop = started(map(packed, drawn))
    loop.steps(4)
    loop.end()
    row = callback.latest
    seconds = 3 * row["throughput/step_time"]
    assert row["throughput/tflops"] * 1e12 * seconds == pytest.approx(flops(drawn[2:]))
    assert row["throughput/tokens_per_sec"] * seconds == pytest.approx(tokens(drawn[2:]))
    assert row["throughput/samples_per_sec"] * seconds == pytest.approx(sum(map(len, drawn[2:])))
    assert row["throughput/mfu"] == pytest.approx(row["throughput/tflops"] / 1000)  # the peak is 1000 TFLOP/s
    assert row["throughput/total_flops"] == flops(drawn)


def test_log_interval_one_has_no_rates_for_the_first_step():
    callback, loop = started(map(packed, draw(3, 6)), log_interval=1)
    loop.steps(3).end()
    rows = loop.manager.user_state[ROWS]
    assert list(rows) == [1, 2, 3]
    assert ["throughput/step_time" in row for row in rows.values()] == [False, True, True]


def test_evaluation_is_neither_work_nor_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("bridge.metrics.timing.HostClock.mark", lambda self: now[0])
    drawn = draw(4, 30)
    callback, loop = started(map(packed, drawn))
    loop.steps(1)
    now[0] = 10
    loop.steps(1)
    loop.evaluate(5)
    now[0] = 1000
    loop.save()
    now[0] = 2000
    loop.steps(1)
    now[0] = 2006
    loop.steps(1).end()
    assert callback.latest["throughput/step_time"] == pytest.approx((10 + 6) / 3)
    assert callback.latest["throughput/total_flops"] == flops(drawn[:4] + drawn[9:13])


@pytest.mark.parametrize("back", [0.0, -5.0, math.nan])
def test_a_clock_that_stands_still_or_steps_back_costs_the_rates_only(monkeypatch, back):
    now = [100.0]
    monkeypatch.setattr("bridge.metrics.timing.HostClock.mark", lambda self: now[0])
    drawn = draw(5, 16)
    callback, loop = started(map(packed, drawn))
    loop.steps(4)
    now[0] += back
    loop.steps(4).end()
    assert "throughput/tflops" not in callback.latest
    assert callback.latest["throughput/total_flops"] == flops(drawn)


def test_skipped_steps_are_work_but_their_tokens_are_reported_apart():
    drawn = draw(6, 16)
    callback, loop = started(map(packed, drawn))
    loop.steps(1, skipped=True).steps(2).steps(1, skipped=True).steps(4).end()
    assert callback.latest["throughput/total_flops"] == flops(drawn)
    rows = loop.manager.user_state[ROWS]
    assert rows[4]["throughput/unlearned_tokens"] == tokens(drawn[:2] + drawn[6:8])
    assert "throughput/unlearned_tokens" not in rows[8]


def test_a_resume_continues_to_the_integer_whatever_the_log_interval():
    drawn = draw(8, 40)
    callback, loop = started(map(packed, drawn[:14]), log_interval=5)
    saved = json.loads(json.dumps(loop.steps(7).save()))  # a plain object: no tensors, no classes
    assert saved["ThroughputCallback"]["total_flops"] == flops(drawn[:14])

    callback = ThroughputCallback(log_interval=3)
    loop = Loop([callback], state(config(), step=7), map(packed, drawn[14:]))
    loop.manager.load_state_dict(saved)
    loop.start().steps(13).end()
    assert callback.latest["step"] == 20
    assert callback.latest["throughput/total_flops"] == flops(drawn)
    assert callback.latest["throughput/total_tokens"] == tokens(drawn)


def test_a_save_in_the_middle_of_an_interval_changes_nothing():
    drawn = draw(9, 24)
    plain, loop = started(map(packed, drawn))
    loop.steps(12).end()
    saving, loop = started(map(packed, drawn))
    for _ in range(12):
        loop.steps(1).save()
    loop.end()

    def counted(row):
        return {k: v for k, v in row.items() if "/flops/" in k or "/total_" in k or "padding" in k or k == "step"}

    assert counted(saving.latest) == counted(plain.latest)


def test_the_state_of_a_callback_that_never_started_is_what_was_loaded():
    callback = ThroughputCallback()
    assert callback.state_dict() == {}
    callback.load_state_dict({"total_flops": 3})
    assert callback.state_dict() == {"total_flops": 3}


def test_batches_taken_before_training_starts_are_counted():
    drawn = draw(10, 8)
    callback = ThroughputCallback()
    loop = Loop([callback], state(config()), map(packed, drawn))
    loop.take()
    loop.start()
    loop.take()
    loop.steps(3).end()
    assert callback.latest["throughput/total_flops"] == flops(drawn)


def test_a_loop_that_only_has_steps():
    drawn = draw(10, 8)
    callback = ThroughputCallback(log_interval=2)
    Loop([callback], state(config()), map(packed, drawn)).steps(4).end()
    assert callback.latest["throughput/total_flops"] == flops(drawn)


def test_facts_are_published_once():
    callback, loop = started(map(packed, draw(1, 2)))
    facts = loop.manager.user_state[FACTS]
    assert facts["convention"] == "megatron"
    assert (facts["peak_flops"], facts["peak_source"]) == (1e15, "measured: in a test")
    assert facts["flops_per_token"] == plan().flops([64]) / 64
    assert facts["parameters"] == plan().parameters()
    assert facts["not_counted"] == []
    assert facts["formula_inputs"]["window_size"] == (7, 0)
    assert facts["data_parallel_size"] == facts["world_size"] == 1


def test_rows_and_facts_go_to_the_trackers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    trackers = Trackers([JsonlTracker(path)])
    callback, loop = started(map(packed, draw(1, 16)), run=state(config(), trackers=trackers))
    for _ in range(8):
        loop.steps(1)
        trackers.log({"lm loss": 2.0}, loop.state.train_state.step)
    loop.end()
    trackers.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all("lm loss" in row for row in rows)
    assert [row["step"] for row in rows if "throughput/mfu" in row] == [4, 8]
    summary = json.loads((tmp_path / "metrics.summary.json").read_text())
    assert summary["peak_source"] == "measured: in a test"
    assert summary["throughput/total_flops"] == callback.latest["throughput/total_flops"]


def test_in_a_foreign_loop_rows_go_to_its_wandb_run_and_to_a_file(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = tmp_path / "metrics.jsonl"
    quiet = wandb.Settings(console="off", silent=True)
    with wandb.init(project="host", dir=tmp_path, config={"lr": 1}, mode="offline", settings=quiet) as run:
        callback, loop = started(map(packed, draw(1, 12)), run=state(config(), wandb_logger=wandb), metrics_file=str(path))
        for step in range(1, 7):
            loop.steps(1)
            run.log({"throughput/tflops/device": 588.0}, step=step)
        loop.end()
        run.log({"after": 1}, step=6)  # the host is not done, and nothing of it is lost
        assert wandb.run is run
        assert dict(run.config) == {"lr": 1}
        summary = dict(run.summary)
        second = ThroughputCallback("exact", log_interval=1)
        Loop([second], state(config(), wandb_logger=wandb), map(packed, draw(1, 4))).start().steps(1).end()
    assert summary["bridge/convention"] == "megatron"
    assert summary["bridge/throughput/total_flops"] == callback.latest["throughput/total_flops"]
    assert second.latest["throughput/total_flops"] == flops(draw(1, 4)[:2], "exact")
    assert [json.loads(line)["throughput/total_flops"] for line in path.read_text().splitlines()] == [
        flops(draw(1, 12)[:8]),
        flops(draw(1, 12)),
    ]
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    records = [json.loads(line) for line in subprocess.run(command, capture_output=True, check=True).stdout.splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [row["_step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["throughput/tflops/device"] == 588 for row in rows)
    assert {row["bridge/step"]: row["bridge/throughput/total_flops"] for row in rows if "bridge/step" in row} == {
        4: flops(draw(1, 12)[:8]),
        6: flops(draw(1, 12)),
    }
    assert rows[-1]["after"] == 1
    (file,) = folder.glob("run-*.wandb")
    read = open_run(file)  # for a report: our numbers, not the host's of the same name
    assert read.facts["convention"] == "megatron"
    assert read.rows[-1]["throughput/tflops/device"] == callback.latest["throughput/tflops/device"]
    assert [row["throughput/tflops/device"] for row in read.rows if "throughput/tflops/device" in row] != [588] * 6


def test_two_callbacks_in_one_run_do_not_mix_conventions(caplog):
    first, second = ThroughputCallback("exact"), ThroughputCallback("megatron")
    Loop([first, second], state(config()), map(packed, draw(1, 8))).start().steps(4).end()
    assert first.latest["throughput/total_flops"] == flops(draw(1, 8), "exact")
    assert second.latest == {}
    (warning,) = warnings(caplog)
    assert "convention='megatron': another ThroughputCallback of this run counts in 'exact'" in warning


def test_the_hosts_own_step_is_the_step_of_a_row():
    """Iterations that the host skips, as Megatron-LM's --iterations-to-skip does."""
    callback, loop = started(map(packed, draw(1, 16)), run=state(config(), step=10), log_interval=2)
    loop.steps(1)
    loop.state.train_state.step += 2
    loop.steps(3).end()
    assert list(loop.manager.user_state[ROWS]) == [14, 16, 17][: len(loop.manager.user_state[ROWS])]
    assert callback.latest["throughput/total_flops"] == flops(draw(1, 8))


def test_a_host_that_never_counts_its_steps_is_counted_for():
    callback, loop = started(map(packed, draw(1, 16)), log_interval=2)
    for _ in range(5):
        loop.steps(1)
        loop.state.train_state.step = 0
    loop.end()
    assert callback.latest["step"] == 5
    assert callback.latest["throughput/total_flops"] == flops(draw(1, 10))


def test_a_run_that_breaks_off_publishes_what_has_arrived(tmp_path):
    callback, loop = started(map(packed, draw(1, 16)), metrics_file=str(tmp_path / "metrics.jsonl"))
    loop.steps(4)
    callback.abandon(CallbackContext(state=loop.state, model=[], user_state=loop.manager.user_state))
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row["throughput/total_flops"] == flops(draw(1, 8))
    assert json.loads((tmp_path / "metrics.summary.json").read_text())["throughput/total_flops"] == flops(draw(1, 8))


def test_a_row_is_made_beside_the_step_after_its_sum_has_arrived(monkeypatch):
    makers = []

    def made(interval):
        makers.append(threading.current_thread() is threading.main_thread())
        return throughput_keys(interval)

    monkeypatch.setattr("bridge.training.callbacks.throughput.throughput", made)
    callback, loop = started(map(packed, draw(1, 30)))
    published = []
    for _ in range(10):
        loop.steps(1)
        published.append(list(loop.manager.user_state.get(ROWS, {})))
    assert published == [[]] * 5 + [[4]] * 4 + [[4, 8]]
    loop.steps(1).end()
    assert list(loop.manager.user_state[ROWS]) == [4, 8, 11]
    assert makers == [False, False, True]  # whoever waits for a row makes it himself
    assert callback.latest["throughput/total_flops"] == flops(draw(1, 22))


def test_a_row_that_cannot_be_made_is_one_warning(monkeypatch, caplog):
    def broken(interval):
        raise ArithmeticError("beside the step")

    monkeypatch.setattr("bridge.training.callbacks.throughput.throughput", broken)
    callback, loop = started(map(packed, draw(1, 40)))
    loop.steps(15).end()
    assert callback.latest == {}
    assert sum("stopped counting on this rank: ArithmeticError: beside the step" in line for line in caplog.messages) == 1


# ---- what goes wrong ---------------------------------------------------------------------------------------------------


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Broken:
    """A batch that breaks whoever looks at it."""

    def __getattr__(self, name):
        raise RuntimeError("broken batch")


def test_an_exception_inside_is_one_warning_and_no_more_numbers(caplog):
    batches = [packed([3])] * 9 + [Broken()] * 3 + [packed([3])] * 12
    callback, loop = started(iter(batches))
    loop.steps(12).end()
    assert warnings(caplog) == [
        "throughput: stopped counting on this rank: RuntimeError: broken batch. Training goes on.",
        "throughput is not reported from step 8 on: a rank could not count its batches",
    ]
    assert callback.latest["step"] == 4
    assert callback.state_dict()["complete"] is False


@pytest.mark.parametrize("event", ["on_train_step_start", "on_eval_start", "on_checkpoint_save", "on_train_end"])
def test_an_exception_in_an_event_never_reaches_the_loop(event, monkeypatch, caplog):
    callback, loop = started(map(packed, draw(1, 20)))
    loop.steps(2).fire("on_eval_start")
    loop.fire("on_eval_end")
    monkeypatch.setattr("bridge.metrics.timing.IntervalTimer.pause", lambda self: 1 / 0)
    monkeypatch.setattr("bridge.metrics.timing.IntervalTimer.run", lambda self: 1 / 0)
    loop.fire(event)
    assert warnings(caplog)[0] == (
        "throughput: stopped counting on this rank: ZeroDivisionError: division by zero. Training goes on."
    )
    loop.steps(6).end()


def test_a_state_that_has_nothing_a_callback_needs(caplog):
    callback = ThroughputCallback()
    loop = Loop([callback], SimpleNamespace(train_state=SimpleNamespace(step=0)), map(packed, draw(1, 20)))
    loop.start().steps(8).end()
    (warning,) = warnings(caplog)
    assert "AttributeError" in warning
    assert warning.endswith("Training goes on.")


def test_batches_without_lengths_are_said_not_to_count(caplog):
    drawn = draw(1, 8)
    batches = [packed(lengths) for lengths in drawn] + [{"labels": torch.zeros(2)}, {"labels": torch.zeros(2)}]
    callback, loop = started(iter(batches), log_interval=5)
    loop.steps(5).end()
    assert callback.latest["throughput/unread_micro_batches"] == 2
    assert callback.latest["throughput/total_flops"] == flops(drawn)
    assert warnings(caplog) == [
        "not counted: micro-batches whose lengths cannot be read: a dict without any of cu_seqlens_unpadded, "
        "cu_seqlens_q, cu_seqlens, attention_mask [b, s], tokens, input_ids"
    ]


def test_empty_micro_batches_are_no_work(caplog):
    drawn = draw(1, 4)
    batches = [None, {}, *map(packed, drawn), {"tokens": torch.zeros(0, 8), "attention_mask": None}, None]
    callback, loop = started(iter(batches))
    loop.steps(4).end()
    assert callback.latest["throughput/total_flops"] == flops(drawn)
    assert warnings(caplog) == []


def test_a_statistic_beyond_its_bound_is_noticed_before_it_is_sent(caplog):
    huge = {"tokens": SimpleNamespace(ndim=2, shape=(1, 2**41), numel=lambda: 2**41), "attention_mask": None}
    batches = [packed([3])] * 8 + [huge] * 8
    callback, loop = started(iter(batches))
    loop.steps(8).end()
    first, second = warnings(caplog)
    assert first.startswith("throughput: stopped counting on this rank: OverflowError:")
    assert "outside -2^80 .. 2^80" in first
    assert second.startswith("throughput is not reported from step 8 on")
    assert callback.latest["throughput/total_tokens"] == 24


def test_a_model_that_cannot_be_priced_still_has_its_token_rates(caplog):
    cfg = config()
    del cfg.model.hidden_size
    callback, loop = started(map(packed, draw(1, 8)), run=state(cfg))
    loop.steps(4).end()
    assert "hidden_size" in warnings(caplog)[0]
    assert loop.manager.user_state[FACTS]["not_counted"] == ["the whole model"]
    assert "throughput/tokens_per_sec" in callback.latest
    assert not any("flops" in key or "mfu" in key for key in callback.latest)


def test_mfu_above_one_raises_one_visible_flag(caplog):
    callback, loop = started(map(packed, draw(1, 40)), peak_flops=1.0)
    loop.steps(12).end()
    (warning,) = warnings(caplog)
    assert "no device is faster than its peak. Likely causes:" in warning
    rows = loop.manager.user_state[ROWS]
    assert ["throughput/doubtful" in row for row in rows.values()] == [True, True, True]


def formatted(caplog, told="bf16", device="NVIDIA B200", **fields):
    """Facts and newest row of a run of a quantized model on a device."""
    cfg = config()
    cfg.model = {**MODEL, "bf16": True, **fields}
    cfg.hardware = SimpleNamespace(device_name=device, peak_flops=None)
    run = state(cfg)
    run.number_format = told
    callback, loop = started(map(packed, draw(1, 24)), "exact", run)
    loop.steps(8).end()
    return loop.manager.user_state[FACTS], callback.latest


@pytest.mark.parametrize("told", ["bf16", None])
def test_mfu_is_held_against_the_formats_that_run(told, caplog):
    facts, row = formatted(caplog, told, fp4="e2m1")
    assert (facts["number_format"], facts["number_format_recipe"]) == ("fp4", "nvfp4")
    assert (facts["peak_flops"], facts["peaks"]) == (9e15, {"bf16": 2.25e15, "fp4": 9e15})
    share = row["throughput/format_fraction/fp4"]
    assert share + row["throughput/format_fraction/bf16"] == 1
    # FLOP/s over 2250 TFLOP/s, of which the quantized share goes four times as fast.
    assert row["throughput/mfu_bf16"] == pytest.approx(row["throughput/tflops/device"] / 2250)
    assert row["throughput/mfu"] == pytest.approx(row["throughput/mfu_bf16"] * (1 - share + share / 4))
    assert warnings(caplog) == []


def test_a_run_in_one_format_logs_what_it_always_did(caplog):
    facts, row = formatted(caplog)
    assert (facts["number_format"], facts["number_format_recipe"], facts["peak_flops"]) == ("bf16", None, 2.25e15)
    assert row["throughput/mfu"] == pytest.approx(row["throughput/tflops/device"] * 1e12 / 2.25e15, rel=1e-15)
    assert not [key for key in row if "format_fraction" in key or "mfu_bf16" in key]


@pytest.mark.parametrize(
    ("device", "fields"),
    [
        ("NVIDIA B200", {"fp8": "hybrid", "fp8_recipe": "custom"}),
        ("NVIDIA B200", {"te_precision_config_file": "formats.yaml"}),
        ("NVIDIA H100 80GB HBM3", {"fp4": "e2m1"}),
    ],
)
def test_a_format_that_is_not_known_has_no_mfu(device, fields, caplog):
    _, row = formatted(caplog, device=device, **fields)
    assert row["throughput/total_flops"] == formatted(caplog)[1]["throughput/total_flops"]  # the work is known, its peak is not
    assert not [key for key in row if "mfu" in key or "hfu" in key]


@pytest.mark.parametrize("options", [{"convention": "megatrn"}, {"log_interval": 0}])
def test_wrong_arguments_are_configuration_errors(options):
    with pytest.raises(ConfigError, match="megatrn|log_interval=0"):
        ThroughputCallback(**options)


def test_a_total_that_misses_work_stays_unreported_after_a_resume(caplog):
    callback, loop = started(iter([Broken()] * 10))
    saved = loop.steps(4).save()
    callback = ThroughputCallback()
    loop = Loop([callback], state(config(), step=4), map(packed, draw(1, 20)))
    loop.manager.load_state_dict(saved)
    loop.start().steps(4).end()
    assert callback.latest == {}
    assert any("incomplete" in warning for warning in warnings(caplog))


# ---- what cannot be read -----------------------------------------------------------------------------------------------


def test_half_unread_is_exactly_half_and_said_everywhere(caplog):
    drawn = draw(6, 8)
    unreadable = (torch.ones(2, 64), torch.ones(2, 64))
    callback, loop = started(batch for lengths in drawn for batch in (packed(lengths), unreadable))
    loop.steps(8).end()
    row = callback.latest
    assert row["throughput/total_flops"] == flops(drawn)
    assert row["throughput/total_tokens"] == tokens(drawn)
    assert (row["throughput/unread_micro_batches"], row["throughput/incomplete"]) == (4, 1)
    assert callback.state_dict()["complete"] is False
    assert callback.state_dict()["statistics"]["unread_micro_batches"] == 8
    assert "lower bounds" in loop.manager.user_state[FACTS]["incomplete"]
    # And from there on, also where all could be read again.
    resumed, loop = ThroughputCallback(), None
    resumed.load_state_dict(callback.state_dict())
    loop = Loop([resumed], state(config(), step=8), map(packed, drawn)).start().steps(4).end()
    assert resumed.latest["throughput/total_flops"] == 2 * flops(drawn)
    assert resumed.latest["throughput/incomplete"] == 1
    assert "throughput/unread_micro_batches" not in resumed.latest


def test_nothing_read_is_no_number():
    callback, loop = started(iter([(torch.ones(2, 64), torch.ones(2, 64))] * 8))
    loop.steps(4).end()
    known = {"step", "step_time", "data_wait_fraction", "overhead_ms", "unread_micro_batches", "incomplete", "memory/peak_rss"}
    assert {key.removeprefix("throughput/") for key in callback.latest} == known
    assert callback.state_dict()["total_flops"] is None


@pytest.mark.parametrize("bad", [{"tokens": torch.ones(1, 8), "cu_seqlens": [0, 3, 99]}, {"tokens": 5}, [1], "text"])
def test_one_bad_batch_does_not_end_counting(bad):
    drawn = draw(8, 7)
    callback, loop = started(iter([*map(packed, drawn[:3]), bad, *map(packed, drawn[3:])]))
    loop.steps(4).end()
    assert callback.latest["throughput/total_flops"] == flops(drawn)
    assert callback.latest["throughput/unread_micro_batches"] == 1


def test_batches_of_any_other_form_are_read_as_told():
    drawn = draw(9, 8)
    callback, loop = started(iter(drawn), read=packed)
    loop.steps(3)
    loop.data = loop.manager.observe(iter([None]))
    loop.steps(1, 1).end()  # what `read` makes of None is an error
    assert callback.latest["throughput/total_flops"] == flops(drawn[:6])
    assert callback.latest["throughput/unread_micro_batches"] == 1


def test_batches_before_the_start_are_release_and_bounded(monkeypatch, caplog):
    monkeypatch.setattr("bridge.training.callbacks.throughput._EARLY_KEPT", 3)
    drawn = draw(10, 5)
    batches = [packed(lengths) for lengths in drawn]
    alive = [weakref.ref(batch["tokens"]) for batch in batches]
    callback = ThroughputCallback()
    data = callback.observe(iter(batches))
    del batches
    deque(data, maxlen=0)
    assert [one() for one in alive] == [None] * 5
    Loop([callback], state(config()), iter([])).start().steps(1, 0).end()
    assert callback.latest["throughput/total_flops"] == flops(drawn[:3])
    assert callback.latest["throughput/unread_micro_batches"] == 2
    assert "is the callback registered?" in warnings(caplog)[0]


def test_epochs_of_a_loader_with_workers():
    lengths = [[5, 3], [8], [2, 2, 2]]
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(
            [packed(one) for one in lengths], batch_size=None, num_workers=workers, persistent_workers=workers > 0
        )
        callback = ThroughputCallback()
        loop = Loop([callback], state(config()), loader).start()
        for _ in range(2):
            for _ in loop.data:
                loop.steps(1, 0)
        loop.end()
        assert callback.latest["throughput/total_flops"] == 2 * flops(lengths)


def test_what_is_no_data_is_given_back(caplog):
    assert ThroughputCallback().observe(3) == 3
    assert "observe() takes an iterator or an iterable" in warnings(caplog)[0]


@pytest.mark.parametrize("anew", [False, True])
def test_a_process_group_that_goes_away_ends_the_numbers(anew, caplog):
    def set_up():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)

    drawn = draw(12, 16)
    set_up()
    try:
        callback, loop = started(map(packed, drawn))
        loop.steps(6)
        torch.distributed.destroy_process_group()
        if anew:
            set_up()
        loop.steps(2).end()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert callback.latest["step"] == 4
    assert callback.latest["throughput/total_flops"] == flops(drawn[:8])
    assert callback.state_dict()["complete"] is False
    assert warnings(caplog) == [
        "throughput: stopped counting on this rank: RuntimeError: the process group that training started with is gone, so ranks "
        "cannot be summed. Training goes on.",
        "throughput is not reported from step 8 on: a rank could not count its batches",
    ]


def verified_loop(built_of: Any, cfg: Any, caplog) -> tuple[dict, dict, list[str]]:
    """Facts, the last row and the warnings of a loop that shows its model at the start."""
    caplog.set_level(logging.WARNING)
    loop = Loop([callback := ThroughputCallback("exact", log_interval=1)], state(cfg), iter(fixed([9]) for _ in range(4)))
    loop.fire("on_train_start", model=[built_of])
    loop.steps(2, 2).end()
    return loop.manager.user_state[FACTS], callback.latest, [record.getMessage() for record in caplog.records]


def test_a_built_model_that_is_the_plans_is_verified(caplog):
    llama = pytest.importorskip("transformers").LlamaConfig(**LLAMA)
    facts, row, warnings = verified_loop(llama_model(llama), from_huggingface(llama), caplog)
    assert (facts["verified"], facts["verified_details"]) == ("parameters", [])
    assert "throughput/doubtful" not in row
    assert warnings == []


def test_a_built_model_that_is_another_one_is_one_warning_and_a_doubt_in_every_row(caplog):
    llama = pytest.importorskip("transformers").LlamaConfig
    cfg = from_huggingface(llama(**LLAMA))
    facts, row, warnings = verified_loop(llama_model(llama(**{**LLAMA, "num_hidden_layers": 1})), cfg, caplog)
    said = "decoder.layers.1: plan 2,720, model has none"  # 16 x 48 of attention, 3 x 16 x 40 of the MLP, two norms
    assert (facts["verified"], facts["verified_details"]) == ("no", [said])
    assert row["throughput/doubtful"] == 1
    assert warnings == [f"the model that was built is not the one that is priced, FLOPs and MFU are those of another one: {said}"]


def test_without_a_model_nothing_is_verified_and_nothing_is_doubted(caplog):
    facts, row, warnings = verified_loop(torch.nn.Identity(), config(log_interval=1), caplog)
    assert (facts["verified"], facts["verified_details"]) == ("no", ["not compared: no model was given"])
    assert "throughput/doubtful" not in row
    assert warnings == []


LLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 40,
    "vocab_size": 64,
}


def llama_model(llama: Any) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(llama)


@pytest.mark.parametrize("log_interval", [1, 2, 5, 9, 10, 11, 12, 15, 19, 25, 40, 57])
def test_each_interval_has_a_sampled_step(log_interval):
    every = sampled_every(10, log_interval)
    meter = Meter(None, instruments=Instruments([Times(Place(), None)], every=every))
    steps = [step for step in range(1, 12 * log_interval + 1) if every == 1 or meter._is_sampled(step)]
    assert {(step - 1) // log_interval for step in steps} == set(range(12))
    assert len(steps) <= max(12, 1.2 * log_interval + 1)
    assert (sampled_every(0, log_interval), sampled_every(0, None), sampled_every(20, None)) == (every, 10, 20)
