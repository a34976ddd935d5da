"""A run priced again equals, integer by integer, a run that counted that way."""

from __future__ import annotations

import json

import callback_driver as driver
import pytest

from bridge.cli.main import main
from bridge.flops import ConfigError
from bridge.flops.conventions import CONVENTIONS
from bridge.report.rescore import rescore
from bridge.report.runs import open_run
from bridge.training.callbacks import ThroughputCallback

MOE = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 48, "mtp_num_layers": 1}


def train(folder, convention, *, steps=10, batches=None, **model):
    """The rows of a run over packed batches of all kinds of lengths, the last interval not full."""
    callback = ThroughputCallback(convention, metrics_file=str(folder / "metrics.jsonl"), peak_flops=1e15, detail=0, memory=False)
    data = batches or iter([driver.packed([1 + 7 * i % 61, 64 - i % 5, 3]) for i in range(2 * steps)])
    driver.Loop([callback], driver.state(driver.config(4, **model)), data).start().steps(steps).end()
    return open_run(folder)


def integers(rows):
    return [{key: value for key, value in row.items() if isinstance(value, int) and "imbalance" not in key} for row in rows]


@pytest.mark.parametrize("model", [{}, MOE], ids=["window", "moe"])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_integers_are_those_of_a_run_in_that_convention(tmp_path, convention, model):
    runs = {name: train(tmp_path / name, name, **model) for name in ("megatron", convention)}
    again = list(rescore(runs["megatron"], convention))
    expected = runs[convention].rows
    assert len(again) == 3
    assert integers(again) == integers(expected)
    assert again[-1]["throughput/total_flops"] == expected[-1]["throughput/total_flops"]
    # Two runs have two clocks, but FLOPs per step are the same; in the first row those of the warm-up belong to no time.
    for row, wanted in zip(again[1:], expected[1:], strict=True):
        work = wanted["throughput/mfu"] * wanted["throughput/step_time"]
        assert row["throughput/mfu"] * row["throughput/step_time"] == pytest.approx(work, rel=1e-6)


def test_the_command_shows_both_and_writes_the_rows(tmp_path, capsys):
    train(tmp_path / "run", "megatron")
    wanted = train(tmp_path / "other", "exact")
    assert main(["rescore", str(tmp_path / "run"), "--convention", "exact", "-o", str(tmp_path / "exact.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "exact.jsonl").read_text().splitlines()]
    assert integers(rows) == integers(wanted.rows)
    said = capsys.readouterr().out
    assert f"{wanted.rows[-1]['throughput/total_flops']:,}" in said
    assert f"{open_run(tmp_path / 'run').rows[-1]['throughput/total_flops']:,}" in said


def test_numbers_that_do_not_come_out_are_refused(tmp_path):
    run = train(tmp_path, "megatron")
    with pytest.raises(ConfigError, match="has prices for"):
        list(rescore(run, "mine"))
    run.facts["prices"]["megatron"]["components"]["mlp"]["tokens"] += 1
    with pytest.raises(ConfigError, match="throughput/flops/mlp is .*, and its own megatron prices give"):
        list(rescore(run, "exact"))
    run.facts["prices"]["megatron"]["components"]["mlp"] = {"unheard of": 1}
    with pytest.raises(ConfigError, match="do not fit its rows"):
        list(rescore(run, "exact"))
    del run.facts["prices"]
    with pytest.raises(ConfigError, match="no price lists"):
        list(rescore(run, "exact"))
