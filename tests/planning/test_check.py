"""``check``: what each convention gives, which one fits, what the usual mistakes would give."""

from __future__ import annotations

from fractions import Fraction

import pytest

import bridge
from bridge.config import load_recipe
from bridge.flops import ConfigError
from bridge.planning.check import check
from tests.planning.test_counting_rules import LINEAR, PAIRS, flops, small


def test_conventions():
    found = small()
    assert {one.convention: float(one.flops_per_token) for one in found.conventions} == {
        "megatron": flops(PAIRS), "exact": flops(PAIRS), "maxtext": flops(8 * 3 - 9 / 2), "executed": flops(64),
        "palm": flops(64, LINEAR + 4 * 128 + 5 * 4), "palm_without_embedding": flops(64, LINEAR + 5 * 4),
    }  # fmt: skip


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
