"""What the console shows, and who shows it."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
from callback_driver import MODEL, Loop, config, draw, packed, state

from bridge.flops import compile_plan
from bridge.metrics.trackers import Trackers
from bridge.text import with_unit
from bridge.training.callbacks import ProgressCallback, ThroughputCallback


@pytest.fixture(autouse=True)
def processor(monkeypatch, no_measurement):
    monkeypatch.setattr("bridge.metrics.peak.cpu_name", lambda: "Testprocessor")


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Looker:
    def log(self, metrics, step):
        pass

    def summary(self, facts):
        pass

    def close(self):
        pass

    def how_to_look(self):
        return ["metrics: here", "W&B, here: wandb leet there"]


def shown(steps, *, throughput=True, stream=None, run=None, step=0, evaluate=False):
    stream = stream or io.StringIO()
    cfg = config()
    cfg.name, cfg.train = "tiny", SimpleNamespace(train_iters=10, global_batch_size=8, micro_batch_size=2)
    callbacks = [ThroughputCallback("exact")] if throughput else []
    run = run or state(cfg, step=step, trackers=Trackers([Looker()]))
    loop = Loop([*callbacks, ProgressCallback(stream=stream)], run, map(packed, draw(1, 100))).start().steps(steps)
    if evaluate:
        loop.evaluate(1)
    loop.end()
    return stream.getvalue().splitlines()


def rows_of(lines, title):
    """The table under a title: name -> text."""
    below = lines[lines.index(f"== {title} ==") + 1 :]
    rows = {}
    for line in below:
        if line.startswith(("==", "step ")):
            break
        name, text = line.split("  ", 1)
        rows[name] = text.strip()
    return rows


def log_lines(lines):
    return [line for line in lines if line.startswith("step ")]


def test_the_start_table():
    plan = compile_plan(MODEL, convention="exact")
    total = plan.parameters()["total"]
    assert rows_of(shown(0), "training") == {
        "run": "tiny",
        "model": "4 layers, 64 hidden, 4 heads",
        "parameters": f"{with_unit(total, digits=3)} ({total:,})",
        "FLOPs per token": f"{with_unit(plan.flops([64]) / 64, digits=3)} at 64 tokens, exact convention",
        "layout": "1 rank(s): one replica, unsplit",
        "device": "Testprocessor, fp32",
        "peak per device": "1 PFLOP/s (measured: in a test)",
        "batch": "8 sequences, micro-batches of 2",
        "steps": "10, from 0",
    }


def test_a_line_per_log_point_with_its_own_numbers():
    lines = log_lines(shown(10))
    assert [line.split()[1] for line in lines] == ["4/10", "8/10"]
    for line in lines:
        for word in ("loss 2.0000", "grad norm 1.000", "ms/step", "tokens/s", "TFLOP/s/device", "MFU", "ETA 0:00"):
            assert word in line


def test_a_resumed_run_counts_on():
    lines = shown(6, step=4)
    assert [line.split()[1] for line in log_lines(lines)] == ["8/10"]
    assert rows_of(lines, "done")["steps"].startswith("4 to 10, ")


def test_the_end_says_what_was_done_and_how_to_look():
    lines = shown(10, evaluate=True)
    assert "step 10  evaluation  lm loss 2.5000" in lines
    fed = [length for lengths in draw(1, 20) for length in lengths]
    end = rows_of(lines, "done")
    assert end["last loss"] == "2.0000"
    assert end["tokens"] == f"{sum(fed):,}"
    assert end["FLOPs"] == f"{compile_plan(MODEL, convention='exact').flops(fed):,}"
    assert end["metrics"] == "here"
    assert end["W&B, here"] == "wandb leet there"


def test_without_the_throughput_callback_there_are_still_lines():
    lines = log_lines(shown(10, throughput=False))
    assert [line.split()[1] for line in lines] == ["4/10", "8/10"]
    assert all("loss 2.0000" in line and "ms/step" in line and "MFU" not in line for line in lines)


def test_on_a_terminal_the_table_is_drawn():
    text = re.sub("\x1b\\[[0-9;]*m", "", "\n".join(shown(4, stream=Terminal())))
    assert re.search("│ device +│ Testprocessor, fp32 +│", text)
    assert "step 4/10  loss 2.0000" in text


@pytest.mark.parametrize("writes", [True, False])
def test_only_the_rank_that_writes_prints(writes):
    run = state(config(), groups=SimpleNamespace(writes=writes))
    assert bool(shown(4, run=run)) == writes
