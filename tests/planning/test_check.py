"""``check``: what each convention gives, which one fits, what the usual mistakes would give."""

from __future__ import annotations

from fractions import Fraction

import pytest

import bridge
from bridge.config import load_recipe
from bridge.flops import ConfigError, compile_plan
from bridge.planning.check import Check, check
from bridge.planning.counting_rules import RULES

#: Width 4, MLP 8, vocabulary 128, two heads of 3 where 4 / 2 is 2, two layers: gated, with a window in all of them.
FIELDS = {"num_layers": 2, "hidden_size": 4, "ffn_hidden_size": 8, "num_attention_heads": 2, "kv_channels": 3, "vocab_size": 128,
          "gated_linear_unit": True, "seq_length": 8, "window_size": 3}  # fmt: skip
LINEAR = 2 * (4 * 18 + 6 * 4 + 3 * 4 * 8) + 4 * 128  # multiply-accumulates a token
PAIR = 2 * 2 * 6  # multiply-accumulates of a pair of tokens: two layers, two products, six channels
#: Query-key pairs of 8 tokens that see 3 each: 1 + 2 + 6 x 3.
PAIRS = 21


def flops(pairs: float, linear: int = LINEAR, passes: int = 3) -> float:
    """FLOPs per token of 8."""
    return 2 * passes * (linear + PAIR * pairs / 8)


def small(**given) -> Check:
    return check({"model": FIELDS, **given.pop("sections", {})}, **given)


def way(name: str, convention: str = "exact", **given) -> float:
    return float(small(**given).under(convention, name).flops_per_token)


def test_conventions():
    found = small()
    assert {one.convention: float(one.flops_per_token) for one in found.conventions} == {
        "megatron": flops(PAIRS), "exact": flops(PAIRS), "maxtext": flops(8 * 3 - 9 / 2), "executed": flops(64),
        "palm": flops(64, LINEAR + 4 * 128 + 5 * 4), "palm_without_embedding": flops(64, LINEAR + 5 * 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("six_n_without_embedding", 6 * LINEAR),
        ("six_n", 6 * (LINEAR + 4 * 128 + 5 * 4)),
        ("full_square", flops(64)),
        ("windows_ignored", flops(36)),
        ("half_window", flops(8 * 3 / 2)),
        ("whole_window", flops(8 * 3)),
        ("embedding_counted", flops(PAIRS, LINEAR + 4 * 128)),
        ("attention_left_out", 6 * LINEAR),
        ("head_size_by_width", flops(PAIRS * 2 / 3, LINEAR - 2 * (4 * 6 + 2 * 4))),
        ("gated_as_plain", flops(PAIRS, LINEAR - 2 * 4 * 8)),
        ("recompute_counted", flops(PAIRS, passes=4) - 2 * 4 * 128),
        ("forward_only", flops(PAIRS, passes=1)),
    ],
)  # fmt: skip
def test_what_a_rule_counts(name, expected):
    assert way(name) == pytest.approx(expected, rel=1e-12)


def test_rules_compose():
    both = small(assume=["windows_ignored"]).under("exact", "gated_as_plain")
    assert float(both.flops_per_token) == flops(36, LINEAR - 2 * 4 * 8)
    assert (both.name, both.says[1]) == ("exact with windows_ignored, gated_as_plain", RULES["gated_as_plain"].says)


def test_multi_token_prediction_left_out():
    fields = FIELDS | {"mtp_num_layers": 1}
    found = check({"model": fields}).under("exact", "mtp_left_out")
    assert float(found.flops_per_token) == flops(PAIRS)


def test_experts():
    moe = FIELDS | {"num_moe_experts": 4, "moe_router_topk": 1}
    counts = compile_plan(moe).parameters()
    assert float(check({"model": moe}).under("exact", "six_n_all_experts").flops_per_token) == 6 * counts["total"]
    assert "six_n_all_experts" not in {one.rules[0] for one in small(tokens_per_second=1).mistakes}  # it is six_n there


def test_recomputation_of_attention():
    """It runs one pass again; the paper of selective recomputation counts three."""
    told = small(recompute="selective", tokens_per_second=1)
    core = 2 * PAIR * PAIRS / 8
    assert float(told.under("exact").flops_per_token) == pytest.approx(flops(PAIRS) + core)
    assert float(told.under("exact", "core_recomputed_three_times").flops_per_token) == pytest.approx(flops(PAIRS) + 3 * core)
    assert float(small(recompute="full").under("exact").flops_per_token) == flops(PAIRS, passes=4) - 2 * 4 * 128


def test_adapters():
    lora = {"peft": {"kind": "lora", "dim": 1, "target_modules": ["linear_proj"]}}
    adapters, frozen = 2 * (6 + 4), LINEAR + 4 * 128 + 5 * 4
    assert way("trained_in_full", sections=lora) == flops(PAIRS)
    assert way("lora_as_two_thirds", sections=lora) == pytest.approx(flops(PAIRS) * 2 / 3)
    assert way("lora_by_trainable_share", sections=lora) == pytest.approx(flops(PAIRS) * (2 + adapters / frozen) / 3)
    assert not {"trained_in_full", "lora_as_two_thirds"} & {one.rules[0] for one in small(tokens_per_second=1).mistakes}


def test_ranks_and_peaks():
    layout = {"parallel": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 4, "context_parallel_size": 1}}
    found = small(sections=layout, tokens_per_second=10, devices=16, device_name="H100")
    plain = found.under("exact")
    assert plain.flops_per_second == flops(PAIRS) * 10
    assert plain.utilisation == flops(PAIRS) * 10 / 989.4e12

    def factor(name: str) -> float:
        return found.under("exact", name).flops_per_second / plain.flops_per_second

    expected = {"ranks_twice": 2, "each_tensor_rank": 2, "each_pipeline_rank": 4, "each_context_rank": 1, "whole_job": 16,
                "shared_once_more": 1 / 16, "multiply_accumulates": 1 / 2, "sparse_peak": 1}  # fmt: skip
    assert {name: factor(name) for name in expected} == expected
    assert found.under("exact", "sparse_peak").utilisation == plain.utilisation / 2
    assert found.under("exact", "fp8_peak").utilisation == pytest.approx(plain.utilisation * 989.4 / 1978.9)


def test_speed_by_step_and_of_the_whole_job():
    by_step = small(step_time="0.5", global_batch_size=6, devices=3)
    assert by_step.tokens_per_second == Fraction(6 * 8, 3) / Fraction(1, 2)
    whole = small(tokens_per_second=96, devices=3, whole_job=True, reported="9TFLOP/s")
    assert (whole.tokens_per_second, whole.reported.number) == (32, 3 * 10**12)


def test_packed_documents():
    found = small(sequence_lengths=[2, 6])
    assert float(found.under("exact").flops_per_token) == flops(3 + 1 + 2 + 4 * 3)


# ---- verdicts --------------------------------------------------------------------------------------------------------


def test_why_800_is_711():
    found = check(
        "llama3-8b", sequence_length=8192, devices=8, device_name="H100", tokens_per_second=13812, reported="800TFLOP/s"
    )
    assert found.name == "llama3-8b"
    assert found.fits[0].convention == "executed"
    ours = found.under("megatron").flops_per_second
    assert ours == pytest.approx(421645529382912 / 8192 * 13812)
    assert found.verdict == (
        "800 TFLOP/s is what executed counts: 799.9 TFLOP/s, -0.0% (so does palm_without_embedding); "
        "megatron gives 710.9 TFLOP/s, -11.1%, because of core_attention (+12.5%)."
    )


def test_a_mistake_is_named():
    """A published row: heads of 2,880 / 64 = 45 where the model's have 64."""
    found = check("gpt-oss-120b", sequence_length=4096, tokens_per_second=7626, reported="231TFLOP/s")
    assert found.fits == ()
    assert found.explanations[0].rules == ("head_size_by_width",)
    assert "No convention gives 231 TFLOP/s" in found.verdict
    assert "megatron with head_size_by_width: 231.5 TFLOP/s, +0.2%" in found.verdict


def test_the_wrong_peak_is_named():
    """A published row of an FP8 run."""
    cfg = load_recipe("gpt3-175b", validate=False)
    found = check(cfg, tokens_per_second=170, number_format="bf16", device_name="H100", reported="9.05%")
    assert {one.rules[0] for one in found.explanations} >= {"sparse_peak", "fp8_peak"}


def test_nothing_fits():
    found = check("llama3-8b", sequence_length=8192, tokens_per_second=1000, reported="1TFLOP/s")
    assert (found.fits, found.explanations) == ((), ())
    assert "fits no convention and no usual mistake: the nearest" in found.verdict


def test_rounding_widens_the_tolerance():
    exact, told = flops(PAIRS), small(tokens_per_second=1).under("exact").flops_per_second
    assert exact == told
    close = small(tokens_per_second="1", reported=f"{int(exact * 1.2)}FLOP/s")
    assert close.tolerance == pytest.approx(0.5 + 0.5 / int(exact * 1.2))
    assert close.agrees(close.under("exact"))
    printed = small(tokens_per_second=1, reported=f"{int(exact * 1.2)}FLOP/s")
    assert printed.tolerance == 0.01
    assert not printed.agrees(printed.under("exact"))


@pytest.mark.parametrize(
    ("told", "agree"),
    [(8030261248, True), (8030261249, False), ("8.03B", True), ("8B", True), ("8.1B", False), ("8030261248", True)],
)
def test_parameters(told, agree):
    found = check("llama3-8b", parameters=told)
    assert found.parameters["total"] == 8030261248
    assert found.parameters_agree is agree
    assert ("as reported" in found.verdict) is agree


def test_nothing_reported():
    assert small().verdict == f"Nothing was reported; megatron gives {flops(PAIRS) / 1e9:,.4g} GFLOP per token."


def test_plain_values():
    values = check(
        "llama3-8b", sequence_length=8192, tokens_per_second=13812, reported="800TFLOP/s", device_name="H100"
    ).to_dict()
    assert values["reported"] == {"value": 800e12, "unit": "FLOP/s"}
    by_name = {one["name"]: one for one in values["conventions"]}
    assert by_name["executed"]["ratio"] == pytest.approx(0.99987, abs=1e-5)
    assert values["fits"][0] == "executed"
    assert {"verdict", "mistakes", "tolerance", "parameters"} <= values.keys()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reported": "41%", "tokens_per_second": 1}, "fraction of a peak: give device_name or peak_flops"),
        ({"reported": "800TFLOP/s"}, "give tokens_per_second, or step_time and global_batch_size"),
        ({"reported": "800", "tokens_per_second": 1}, "must be given as 800TFLOP/s or 41%"),
        ({"step_time": 1}, "step_time needs global_batch_size"),
        ({"step_time": 1, "tokens_per_second": 1}, "exclude each other"),
        ({"tokens_per_second": -1}, "tokens_per_second=-1 must be above zero"),
        ({"sequence_length": 0}, "sequence_length=0 must be a positive integer"),
        ({"sequence_length": 4, "sequence_lengths": [4]}, "exclude each other"),
        ({"device_name": "H101"}, "device_name='H101' is unknown"),
        ({"device_name": "A100", "number_format": "fp8"}, "has no fp8 peak"),
        ({"number_format": "fp7"}, "number_format='fp7' is not known"),
        ({"recompute": "some"}, "recompute='some' must be full or selective"),
        ({"assume": ["nothing"]}, "rule 'nothing' is not known"),
        ({"devices": 0}, "devices=0 must be 1 or more"),
    ],
)
def test_errors(given, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        small(**given)


def test_by_name():
    assert bridge.compile_plan("llama3-8b").flops([8192]) == 421645529382912
    assert bridge.check("llama3-8b").parameters["total"] == 8030261248
