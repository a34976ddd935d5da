"""``bridge inference``: the numbers of ``prefill_and_decode`` and of its roofline."""

from __future__ import annotations

import json

import pytest

from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.planning.inference import InferencePlan, MemoryTraffic, prefill_and_decode

REQUEST = ["--prompt", "900", "--generate", "294"]


def answered(capsys, *arguments: str) -> dict:
    assert main(["inference", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ([], {}),
        (["--no-kv-cache"], {"kv_cache": False}),
        (["--batch", "8", "--convention", "executed", "--logits-to-keep", "1"],
         {"batch_size": 8, "convention": "executed", "logits_to_keep": 1}),
        (["--weight-bytes", "0.5", "--cache-bytes", "1"], {"memory": MemoryTraffic(weight=0.5, cache=1)}),
    ],
)  # fmt: skip
def test_the_numbers_of_the_api(more, options, capsys):
    report = answered(capsys, "llama3-8b", *REQUEST, *more)
    expected = prefill_and_decode(load_recipe("llama3-8b", validate=False), 900, 294, **options)
    assert report["flops"] == expected.total
    assert report["prefill"] == {"flops": expected.prefill, "bytes": expected.prefill_bytes}
    assert report["decode"]["steps"] == list(expected.steps)
    assert report["decode"]["step_bytes"] == list(expected.step_bytes)
    assert (report["weight_bytes"], report["cache_bytes"]) == (expected.weight_bytes, expected.cache_bytes)
    assert report["roofline"] is None


def test_the_roofline_of_a_device(capsys):
    report = answered(capsys, "llama3-8b", *REQUEST, "--device-name", "NVIDIA H100 80GB HBM3", "--devices", "2")["roofline"]
    bound = prefill_and_decode(load_recipe("llama3-8b", validate=False), 900, 294).roofline("H100", num_devices=2)
    assert report["time_to_first_token"] == bound.time_to_first_token
    assert report["tokens_per_second"] == bound.tokens_per_second
    assert (tuple(report["mfu"].values()), tuple(report["mbu"].values())) == (bound.mfu, bound.mbu)
    assert (report["prefill_bound"], report["decode_bound"]) == ("compute", "memory")


def test_a_device_of_ones_own(capsys):
    report = answered(capsys, "tiny", *REQUEST, "--peak-flops", "1T", "--bandwidth", "1G")
    expected = prefill_and_decode(load_recipe("tiny", validate=False), 900, 294).roofline("", peak_flops=1e12, bandwidth=1e9)
    assert report["roofline"]["total_time"] == expected.total_time
    mixed = answered(capsys, "tiny", *REQUEST, "--device-name", "A100", "--bandwidth", "2T")
    assert mixed["roofline"]["total_time"] < report["roofline"]["total_time"]


def test_latents_of_mla(capsys):
    config = load_recipe("deepseek-v2-lite", validate=False)
    for way in ("once", "absorbed"):
        report = answered(capsys, "deepseek-v2-lite", *REQUEST, "--latents", way)
        assert report["decode"]["flops"] == prefill_and_decode(config, 900, 294, latents=way).decode


def test_the_table(capsys):
    assert main(["inference", "llama3-8b", *REQUEST, "--device-name", "h100"]) == 0
    out = capsys.readouterr().out
    assert "1 request of 900 tokens answered with 294 tokens, with a KV cache; convention exact" in out
    decode = next(line for line in out.splitlines() if line.startswith("decode"))
    assert decode.split()[1:6] == ["293", "4.559", "TFLOP", "15.56", "GFLOP"]
    assert decode.split()[-3:] == ["0.3%", "100.0%", "memory"]
    assert "at best 0.01387 s to the first token, 221.2 tokens/s, 1.339 s in all" in out


def test_one_token_has_no_decode(capsys):
    assert main(["inference", "tiny", "--prompt", "5", "--generate", "1", "--device-name", "h100"]) == 0
    assert "tokens/s" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "--prompt", "5"], "the following arguments are required: --generate"),
        (["tiny", "--prompt", "0", "--generate", "1"], "--prompt: '0' must be a positive integer"),
        (["tiny", *REQUEST, "--device-name", "A100"], "different memory; name one of them or give --bandwidth"),
        (["tiny", *REQUEST, "--device-name", "v100"], "has no bf16 peak, only fp16"),
        (["tiny", *REQUEST, "--peak-flops", "1T"], "needs both --peak-flops and --bandwidth"),
        (["tiny", "model.is_causal=false", *REQUEST], "model.is_causal=False"),
        (["tiny", *REQUEST, "--latents", "twice"], "invalid choice: 'twice'"),
    ],
)
def test_errors(arguments, words, capsys):
    assert main(["inference", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert words in captured.err


def test_a_cached_prompt_and_a_draft(capsys):
    options = ["inference", "qwen3-8b", "--prompt", "900", "--generate", "101"]
    draft = ["--draft", "qwen3-0.6b", "--acceptance", "1", "--device-name", "H100"]
    assert main([*options, "--cached-prompt", "640", *draft, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    plan = InferencePlan(load_recipe("qwen3-8b", validate=False))
    assert report["prefill"]["flops"] == plan.prefill(900) - plan.prefill(640)
    assert report["experts_reached"] is None
    speculation = report["speculation"]
    assert (speculation["tokens_per_pass"], speculation["passes"]) == (5, 20)
    assert speculation["target_flops"] == plan.decode(900, 100)
    assert speculation["decode_time"] < report["roofline"]["decode_time"]
    assert main([*options, *draft]) == 0
    assert "with a draft: 5 tokens per pass, 20 passes" in capsys.readouterr().out
    assert main([*options, *draft[:2]]) == 2
    assert "--acceptance is missing" in capsys.readouterr().err


def test_experts_that_a_step_reaches(capsys):
    assert main(["inference", "qwen3-30b-a3b", "--prompt", "9", "--generate", "3", "--batch", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["experts_reached"] == pytest.approx(128 * (1 - (1 - 8 / 128) ** 2))  # 15.5: two tokens share half of one
