"""What each rule counts, by hand on a model small enough for it, and on top of each other."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.flops.conventions import CONVENTIONS, EXACT
from bridge.flops.parameter_rule import Parameters
from bridge.flops.reading import read
from bridge.planning import counting_rules
from bridge.planning.check import Check, check
from bridge.planning.counting_rules import PALM_WITHOUT_EMBEDDING, RULES, WAYS, Case, Priced

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


# ---- by name, and by themselves --------------------------------------------------------------------------------------


def case(fields: dict | None = None, lengths: tuple[int, ...] = (8,), **given) -> Case:
    return Case(read({"model": FIELDS | (fields or {}), **given.pop("sections", {})}), lengths, **given)


def priced(one: Case, convention=EXACT) -> Priced:
    return Priced(one, one.model, convention, one.passes)


def test_ways_and_rules_by_name():
    assert [one.name for one in WAYS] == [*CONVENTIONS, "palm_without_embedding"]
    assert counting_rules.way("exact") is EXACT
    assert counting_rules.way("palm_without_embedding") is PALM_WITHOUT_EMBEDDING
    assert PALM_WITHOUT_EMBEDDING.parameters is Parameters.WITHOUT_EMBEDDING
    mine = replace(EXACT, name="mine")
    assert counting_rules.way(mine) is mine
    assert [counting_rules.get(name) for name in RULES] == list(RULES.values())
    with pytest.raises(ConfigError) as error:
        counting_rules.get("nothing")
    assert str(error.value) == f"rule 'nothing' is not known; choose from {', '.join(RULES)}"
    with pytest.raises(ConfigError, match="convention='nothing' is not known"):
        counting_rules.way("nothing")


def test_a_case():
    one = case(lengths=(2, 6), peaks={"bf16": 4.0, "fp8": 8.0})
    assert (one.tokens, one.peak) == (8, 4.0)
    assert (case().peak, replace(one, number_format="fp4").peak) == (None, None)
    assert RULES["fp8_peak"].peak(one) == 2
    assert RULES["fp8_peak"].peak(replace(one, number_format="fp8")) == 1
    assert RULES["fp4_peak"].peak(one) == RULES["fp8_peak"].peak(case()) == 1  # unknown: nothing is claimed
    assert RULES["shared_once_more"].rate(replace(one, devices=3)) == Fraction(1, 3)


def test_attention_is_what_its_products_cost_forward():
    assert priced(case()).attention == 2 * PAIR * PAIRS
    assert priced(case(lengths=(2, 6))).attention == 2 * PAIR * (3 + 1 + 2 + 4 * 3)
    assert priced(case(passes="hardware", fields={"recompute_granularity": "selective"})).attention == 2 * PAIR * PAIRS


def test_one_sequence_follows_the_public_functions_rule_and_several_are_measured():
    """A window as long as the sequence: half the square there, the triangle here."""
    alone, several = priced(case({"window_size": 8})), priced(case({"window_size": 8}, (8, 8)))
    assert alone.attention == 2 * PAIR * 32
    assert several.attention == 2 * 2 * PAIR * 36


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gated_as_plain", {"gated_linear_unit": False}),
        ("head_size_by_width", {"kv_channels": 2}),
        ("head_size_by_width", {"kv_channels": None}),
        ("mtp_left_out", {}),
        ("trained_in_full", {}),
        ("ranks_twice", {}),
        ("attention_left_out", None),
    ],
)
def test_a_rule_that_changes_nothing_leaves_all_as_it_is(name, fields):
    one = priced(case(fields))
    if fields is None:
        one = RULES[name].applied(one)
    assert RULES[name].applied(one) is one


@pytest.mark.parametrize(("lengths", "half", "whole"), [((2,), 2, 4), ((3,), 4.5, 9), ((4,), 6, 12), ((2, 4), 3 + 6, 6 + 12)])
def test_a_window_that_is_no_shorter_than_the_longest_sequence_hides_nothing(lengths, half, whole):
    for name, pairs in (("half_window", half), ("whole_window", whole)):
        counted = RULES[name].applied(priced(case(lengths=lengths)))
        assert counted.flops - RULES["attention_left_out"].applied(counted).flops == 6 * PAIR * pairs


def test_chunks_are_ignored_like_windows():
    chunked = case({"window_size": None, "attention_chunk_size": 4, "no_rope_freq": 3})
    assert priced(chunked).attention == 2 * PAIR * 2 * 10
    assert RULES["windows_ignored"].applied(priced(chunked)).attention == 2 * PAIR * 36
    executed = replace(priced(chunked), convention=CONVENTIONS["executed"])
    assert RULES["windows_ignored"].applied(executed).attention == 2 * PAIR * 64


def test_parameters_that_six_n_leaves_out():
    """The table of 128 x 4 is looked up; where the output layer shares it, it is there once and looked up all the same."""
    norms = 5 * 4
    assert float(small().under("exact", "six_n_all_but_embedding").flops_per_token) == 6 * (LINEAR + norms)
    tied = check({"model": FIELDS | {"share_embeddings_and_output_weights": True}})
    assert float(tied.under("exact", "six_n_all_but_embedding").flops_per_token) == 6 * (LINEAR - 512 + norms)
    assert float(tied.under("exact", "six_n_without_embedding").flops_per_token) == 6 * LINEAR
    assert float(tied.under("exact", "six_n").flops_per_token) == 6 * (LINEAR + norms)


def test_an_embedding_that_a_convention_counts_is_not_counted_again():
    palm = small().under("palm")
    assert small().under("palm", "embedding_counted").flops_per_token == palm.flops_per_token


def test_what_is_frozen_trains_in_full():
    frozen = case(sections={"peft": {"kind": "freeze", "freeze": ["decoder.layers.0.*"]}})
    full = RULES["trained_in_full"].applied(priced(frozen))
    assert priced(frozen).flops < full.flops == priced(case()).flops
    assert (full.model.freeze, full.model.adapters) == ((), None)


def test_a_hybrid_models_prediction_stands_behind_a_slash():
    hybrid = case({"num_layers": None, "hybrid_layer_pattern": "*-*-/*-", "mtp_num_layers": 1, "window_size": None})
    without = RULES["mtp_left_out"].model(hybrid.model).language
    assert (without.hybrid_layer_pattern, without.mtp_num_layers) == ("*-*-", None)
