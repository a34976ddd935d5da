"""``bridge plan``: the API's integers, ranges in and out, and a published run between its ends."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.flops import compile_plan

CLUSTER = ["--devices", "1024", "--device-name", "H100", "--mfu", "0.4"]


def planned(capsys, *arguments: str) -> dict:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_fifteen_trillion_tokens(capsys):
    report = planned(capsys, "llama3-8b", "--tokens", "15T", *CLUSTER, "--price", "2", "--power", "1000")
    plan = compile_plan(load_recipe("llama3-8b", validate=False))
    per_token = Fraction(plan.flops([8192]), 8192)
    assert Fraction(report["flops_per_token"]) == per_token
    assert report["flops"] == per_token * 15 * 10**12  # to the last digit, far over 2^63
    seconds = float(per_token) * 15e12 / (1024 * 989.4e12 * 0.4)
    assert report["days"] == pytest.approx(seconds / 86400)
    assert report["device_hours"] == pytest.approx(1024 * seconds / 3600)
    assert report["cost"] == pytest.approx(2 * 1024 * seconds / 3600)
    assert report["energy_kwh"] == pytest.approx(1024 * seconds / 3600)
    assert report["tokens_per_parameter"] == pytest.approx(15e12 / 8_030_261_248)
    assert report["chinchilla_ratio"] == pytest.approx(15e12 / 8_030_261_248 / 20)
    assert report["chinchilla_tokens"] == 20 * 8_030_261_248


def test_a_budget_is_the_way_back(capsys):
    there = planned(capsys, "llama3-8b", "--tokens", "1T", *CLUSTER, "--price", "2", "--power", "1k")
    for name, unit in (("flops", ""), ("days", "days"), ("device_hours", "device-hours"), ("energy_kwh", "kWh"), ("cost", "$")):
        back = planned(capsys, "llama3-8b", "--budget", f"{there[name]}{unit}", *CLUSTER, "--price", "2", "--power", "1k")
        assert back["tokens"] == pytest.approx(1e12, rel=1e-9)
    assert planned(capsys, "llama3-8b", "--budget", "$2M", *CLUSTER, "--price", "2")["device_hours"] == pytest.approx(1e6)


def test_ranges(capsys):
    report = planned(
        capsys, "llama3-8b", "--tokens", "1T-2T", "--devices", "512-1024", "--device-name", "H100", "--mfu", "0.35-0.45"
    )
    one = planned(capsys, "llama3-8b", "--tokens", "1T", "--devices", "1024", "--device-name", "H100", "--mfu", "0.45")
    two = planned(capsys, "llama3-8b", "--tokens", "2T", "--devices", "512", "--device-name", "H100", "--mfu", "0.35")
    assert report["flops"] == [one["flops"], two["flops"]]
    assert report["days"] == pytest.approx([one["days"], two["days"]])
    assert report["mfu"] == [0.35, 0.45]


def test_steps_and_batches(capsys):
    by_batch = planned(capsys, "llama3-8b", "--tokens", "1G", *CLUSTER, "--batch-size", "1000")
    assert (by_batch["batch_tokens"], by_batch["steps"]) == (8_192_000, 123)  # 122.07, rounded up
    assert by_batch["step_seconds"] == pytest.approx(by_batch["days"] * 86400 / (1e9 / 8_192_000))
    by_steps = planned(capsys, "llama3-8b", "--tokens", "1G", *CLUSTER, "--steps", "123")
    assert (by_steps["batch_size"], by_steps["steps"]) == (993, 123)  # 992.4 sequences
    by_law = planned(capsys, "llama3-8b", "--tokens", "1G", *CLUSTER)
    assert by_law["batch_size"] == -(-0.2920 * by_law["flops"] ** 0.3271 // 8192)


def test_a_published_run_lies_in_between(capsys):
    """DeepSeek-V3: 14.8 trillion tokens took 2.664 million H800 hours (arXiv:2412.19437, table 1)."""
    report = planned(
        capsys, "deepseek-v3", "--tokens", "14.8T", "--devices", "2048", "--device-name", "H800", "--mfu", "0.35-0.45"
    )
    low, high = report["device_hours"]
    assert low < 2.664e6 < high
    assert report["tokens_per_active_parameter"] == pytest.approx(14.8e12 / report["parameters"]["active"])


def test_a_peak_of_ones_own(capsys):
    report = planned(capsys, "tiny", "--tokens", "1M", "--devices", "1", "--peak-flops", "1T", "--mfu", "0.5")
    assert (report["peak_flops"], report["cost"], report["energy_kwh"]) == (1e12, None, None)
    fp8 = planned(
        capsys, "tiny", "--tokens", "1M", "--devices", "1", "--device-name", "h100", "--number-format", "fp8", "--mfu", "0.5"
    )
    assert fp8["peak_flops"] == 1978.9e12


def test_the_table(capsys):
    assert main(["plan", "llama3-8b", "--tokens", "15T", *CLUSTER[:-1], "0.35-0.45", "--price", "2", "--power", "1.2k"]) == 0
    rows = {line[:20].strip(): line[20:].strip() for line in capsys.readouterr().out.splitlines()}
    assert rows["FLOPs"] == "7.721e+23 = 772.1 ZFLOP"
    assert rows["days"] == "19.6 to 25.2"
    assert rows["device-hours"] == "481,684 to 619,308"
    assert rows["energy"] == "578 MWh to 743.2 MWh"
    assert rows["cost"] == "963,367 to 1,238,615"
    assert rows["tokens per parameter"] == "1,868, 93.4 times Chinchilla's 20"
    assert rows["compute-optimal"] == "80.2 billion dense parameters on 1.6 trillion tokens"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tokens", "1T", "--mfu", "0.4", "--device-name", "h100"], "the following arguments are required: --devices"),
        (
            ["--tokens", "1T", "--devices", "8", "--device-name", "v100", "--number-format", "fp16", "--mfu", "2"],
            "a fraction of 1",
        ),
        (["--tokens", "1T", "--devices", "8", "--peak-flops", "1T", "--number-format", "tf32"], "--mfu is missing"),
        (["--tokens", "1T", "--devices", "8", "--mfu", "0.4"], "--device-name is missing"),
        (["--tokens", "1T", "--devices", "8", "--mfu", "40", "--device-name", "h100"], "a fraction of 1"),
        (["--tokens", "1T", "--devices", "8", "--mfu", "0.4", "--device-name", "h1000"], "(did you mean h100?)"),
        (["--tokens", "1T", "--budget", "1e20", *CLUSTER], "not allowed with argument"),
        ([*CLUSTER], "give --tokens or --budget to plan a run, or --global-batch-size to list the layouts that fit"),
        (["--global-batch-size", "8", "--tokens", "1T", *CLUSTER], "not allowed with argument"),
        (["--global-batch-size", "8", "--devices", "8-16", "--device-name", "h100"], "--devices must be a single number"),
        (["--global-batch-size", "8", "--devices", "300k", "--device-name", "h100"], "searched for at most 131,072"),
        (["--tokens", "1T", "--devices", "8.5", "--device-name", "h100"], "'8.5' must be a whole number"),
        (["--global-batch-size", "8", "--devices", "8"], "--device-name is missing"),
        (["--global-batch-size", "8", "--devices", "8", "--device-name", "v100"], "its memory and its links are unknown"),
        (
            ["--global-batch-size", "8", "--devices", "8", "--device-name", "a100 80gb", "--number-format", "fp8"],
            "device 'a100 80gb' has no fp8 peak",
        ),
        (
            ["--budget", "3weeks", *CLUSTER],
            "'3weeks' must be a number or a range, alone or with a unit: flop, days, device-hours",
        ),
        (["--budget", "3M$", *CLUSTER], "give price"),
        (["--tokens", "many", *CLUSTER], "'many' must be a number such as"),
    ],
)
def test_errors(arguments, words, capsys):
    assert main(["plan", "tiny", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert words in captured.err


# ---- devices side by side, memory, layouts -----------------------------------------------------------


def test_devices_side_by_side(capsys):
    options = ["llama3-70b", "--tokens", "15T", "--devices", "8", "--mfu", "0.4", "--carbon", "0.5"]
    h100, b200 = planned(capsys, *options, "--device-name", "H100,B200")
    for report, name, peak, watts in ((h100, "H100", 989.4e12, 700), (b200, "B200", 2250e12, 1000)):
        alone = planned(capsys, *options, "--device-name", name)
        assert report == alone
        assert (report["device"], report["peak_flops"]) == (name, peak)
        assert report["energy_kwh"] == pytest.approx(report["device_hours"] * watts / 1000)
        assert report["co2_kg"] == pytest.approx(report["energy_kwh"] / 2)
    # 2 + 4 + 12 bytes a parameter.
    assert h100["state_bytes"] == 18 * h100["parameters"]["total"]
    assert (h100["fits"], b200["fits"]) == (False, True)
    assert main(["plan", *options, "--device-name", "H100,B200"]) == 0
    rows = {line[:20].strip(): line[20:].strip() for line in capsys.readouterr().out.splitlines()}
    assert rows["memory"].split("  ")[0] == "1.27 TB of states, does not fit in 8 x 79 GiB"
    assert rows["memory"].strip().endswith("1.27 TB of states, fits in 8 x 178 GiB")


@pytest.mark.parametrize(("model", "low", "high"), [("llama3-8b", 0.38, 0.43), ("qwen3-30b-a3b", 0.1, 0.38)])
def test_a_typical_mfu_has_its_source(capsys, model, low, high):
    report = planned(capsys, model, "--tokens", "1T", "--devices", "8", "--device-name", "H100")
    assert report["mfu"] == [low, high]
    assert "H100" in report["mfu_source"]
    assert main(["plan", model, "--tokens", "1T", "--devices", "8", "--device-name", "H100"]) == 0
    assert f"MFU: {report['mfu_source']}; give --mfu to use your own" in " ".join(capsys.readouterr().out.split())


def test_layouts(capsys):
    options = ["llama3-8b", "--devices", "8", "--device-name", "H100", "--global-batch-size", "8", "--sequence-length", "4096"]
    report = planned(capsys, *options)
    first = report["layouts"][0]
    assert sum(first["memory"].values()) == first["bytes"] <= 0.94 * report["device_bytes"]
    assert first["seconds"] == pytest.approx(sum(first["parts"].values()))
    assert first["tokens_per_second_per_device"] == pytest.approx(4096 / first["seconds"])
    assert main(["plan", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "8 sequences of 4,096 tokens per step"
    assert lines[3].startswith(f"8 x h100: {len(report['layouts'])} layouts fit, {report['too_large']} do not")


def test_short_and_odd_sequences(capsys):
    """One context rank takes sequences of any length."""
    for length in ("256", "1001"):
        options = ("--devices", "2", "--device-name", "H100", "--global-batch-size", "8", "--sequence-length", length)
        report = planned(capsys, "tiny", *options)
        assert report["sequence_length"] == int(length)
        layouts = [one["layout"] for one in report["layouts"]]
        assert {layout["context_parallel_size"] for layout in layouts} == {1}
        assert {layout["tensor_model_parallel_size"] for layout in layouts} == ({1, 2} if length == "256" else {1})


def test_a_batch_that_no_layout_shares(capsys):
    assert main(["plan", "tiny", "--devices", "1024", "--device-name", "H100", "--global-batch-size", "7"]) == 0
    assert "no layout of 1,024 x h100 divides the sequences of a step evenly" in capsys.readouterr().out


def test_four_bits_fit_where_sixteen_do_not(capsys):
    options = ("--devices", "1", "--device-name", "H100", "--global-batch-size", "8", "--sequence-length", "4k", "peft.dim=16")
    assert not planned(capsys, "llama3-70b", *options, "peft.kind=lora")["layouts"]
    (first, *_) = planned(capsys, "llama3-70b", *options, "peft.kind=qlora")["layouts"]
    assert 35e9 < first["memory"]["weights"] < 41e9  # 4.127 bits of 68.5 G weights; the embeddings, 2.1 G, in bf16


def test_what_does_not_fit(capsys):
    assert main(["plan", "llama3-70b", "--devices", "8", "--device-name", "H100", "--global-batch-size", "8"]) == 0
    assert (
        "does not fit on 8 x h100: the nearest, TP 4 + SP, PP 2, needs 147.9 GiB of 74.4 GiB per device"
        in capsys.readouterr().out
    )
