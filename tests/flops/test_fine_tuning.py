"""Fine-tuning in the plan: what is adapted, what trains, and what is said about the rest. The integers are held by the oracle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.flops.moments import Moments
from bridge.flops.reading import read
from bridge.flops.terms import Pass
from bridge.flops.transforms import Lora, Trainable

MODEL = {
    "num_layers": 2, "hidden_size": 24, "ffn_hidden_size": 40, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 6,
    "gated_linear_unit": True, "vocab_size": 50, "make_vocab_size_divisible_by": 1, "add_qkv_bias": True,
}  # fmt: skip


def plan(model: dict[str, Any] | None = None, framework: str = "megatron", **peft: Any) -> Any:
    return compile_plan({"model": MODEL | (model or {}), "peft": peft}, convention="executed", framework=framework)


def adapters(model: dict[str, Any] | None = None, **peft: Any) -> set[str]:
    return {term.path.partition(".adapter")[0] for term in plan(model, **peft).terms if ".adapter." in term.path}


def test_names_paths_and_wildcards() -> None:
    one = "decoder.layers.1.mlp.linear_fc2"
    assert adapters(dim=2, target_modules=["linear_fc2"]) == {one, one.replace("1", "0", 1)}
    assert adapters(dim=2, target_modules=[one]) == {one}
    assert adapters(dim=2, target_modules=["*.layers.[1-9].*.linear_fc2"]) == {one}
    assert adapters(dim=2, target_modules=["output_layer"]) == {"output_layer"}


def test_parts_of_fused_layers_get_adapters_of_their_size() -> None:
    found = plan(dim=3, target_modules=["linear_q", "linear_v", "linear_fc1_up"]).parameters()["trainable"]
    # A and B of queries (24 x 24), values (24 x 12) and the up half (24 x 40), in two layers.
    assert found == 2 * 3 * ((24 + 24) + (24 + 12) + (24 + 40))
    assert Lora(2, ("linear_qkv", "linear_q")).wanted("a.linear_qkv", ("linear_q", "linear_k")) == ("linear_qkv",)


def test_names_of_hugging_face() -> None:
    theirs = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    ours = ["linear_q", "linear_k", "linear_v", "linear_proj", "linear_fc1_gate", "linear_fc1_up", "linear_fc2", "output_layer"]
    for one, other in zip(theirs, ours, strict=True):
        assert adapters(dim=2, target_modules=[one]) == adapters(dim=2, target_modules=[other]) != set()
    assert plan(dim=2, target_modules=theirs).flops([7]) == plan(dim=2, target_modules=ours).flops([7])
    assert adapters(dim=2, target_modules=["qkv_proj"]) == adapters(dim=2, target_modules=["linear_qkv"])
    plain = {"gated_linear_unit": False}
    assert adapters(model=plain, dim=2, target_modules=["up_proj"]) == adapters(model=plain, dim=2, target_modules=["linear_fc1"])
    with pytest.raises(ConfigError, match="'q_prj' matches no linear layer"):
        plan(dim=2, target_modules=["q_prj"])


@pytest.mark.parametrize("target", ["linear_qvk", "decoder.layers.7.*", "router"])
def test_a_target_that_is_none_is_named_with_what_there_is(target: str) -> None:
    with pytest.raises(ConfigError, match="target_modules.*choose from linear_fc1, .*linear_qkv") as error:
        plan(dim=2, target_modules=["linear_fc2", target])
    assert repr(target) in str(error.value)


def test_unknown_kinds_and_bad_ranks() -> None:
    with pytest.raises(ConfigError, match="peft.kind='lokr' is not known; choose one of lora, qlora, dora, freeze"):
        plan(kind="lokr", dim=2)
    with pytest.raises(ConfigError, match="peft.dim=0"):
        plan(dim=0)
    with pytest.raises(ConfigError, match="must be a list of names"):
        plan(dim=2, target_modules="linear_fc2")


def test_a_method_without_a_rank_is_named_and_the_model_priced_in_full() -> None:
    class Prefix:
        prefix_length = 20

        def freeze(self) -> None: ...

    unknown = compile_plan({"model": MODEL, "peft": Prefix()}, convention="executed")
    assert unknown.not_counted == ("peft: Prefix has no dim; it is priced as training in full, without adapters",)
    full = compile_plan(MODEL, convention="executed")
    assert unknown.flops([8, 5]) == full.flops([8, 5])
    assert unknown.parameters() == full.parameters()
    with pytest.raises(ConfigError, match="peft.dim=None must be a positive integer"):  # one that says what it is
        plan(kind="lora")


def test_the_first_layer_has_no_input_gradient() -> None:
    passes = {term.path: term.passes for term in plan(dim=2, target_modules=["linear_qkv"]).terms}
    assert passes["decoder.layers.0.self_attention.linear_qkv"] == Pass.FORWARD
    assert passes["decoder.layers.1.self_attention.linear_qkv"] == Pass.FORWARD | Pass.DGRAD


def test_biases_alone_need_no_weight_gradient() -> None:
    tuned = plan(kind="freeze", freeze=["*.weight"])
    assert tuned.parameters()["trainable"] == 2 * (4 + 2 * 2) * 6
    assert not any(term.kind.value == "linear" and Pass.WGRAD in term.passes for term in tuned.terms)


def test_train_wins_over_freeze() -> None:
    assert plan(kind="freeze", freeze=["*"], train=["*norm"]).parameters()["trainable"] == 5 * 24
    assert plan(dim=1, target_modules=["linear_fc2"], train=["*norm"]).parameters()["trainable"] == 5 * 24 + 2 * (40 + 24)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("train", ["embedding", "output_layer"])
def test_embedding_and_output_layer(tied: bool, train: str) -> None:
    tuned = plan({"share_embeddings_and_output_weights": tied}, kind="freeze", freeze=["*"], train=[train])
    logits = next(term for term in tuned.terms if term.path == "output_layer")
    trains = train == ("embedding" if tied else "output_layer")
    assert (Pass.WGRAD in logits.passes) == trains
    assert tuned.parameters()["trainable"] == (0 if tied and not trains else 50 * 24)
    lower = {term.passes for term in tuned.terms if term.name == "linear_fc2"}
    assert lower == {Pass.FORWARD | Pass.DGRAD if train == "embedding" else Pass.FORWARD}


def test_dora_measures_rows_once_a_forward_pass() -> None:
    lora, dora = (plan(kind=kind, dim=3, target_modules=["linear_fc2"]) for kind in ("lora", "dora"))
    rows = 2 * 2 * 3 * 40 * 24  # B A in two layers
    for lengths in ([5], [5, 9, 9]):
        assert dora.flops(lengths) == lora.flops(lengths) + rows
    assert dora.parameters()["trainable"] == lora.parameters()["trainable"] + 2 * 24
    two_batches = [2 * value for value in dora.measure([4])]
    assert dora.evaluate(two_batches) == lora.flops([4, 4]) + 2 * rows
    assert dora.evaluate(dora.measure_moments(Moments.of(2, 10, 50))) == dora.flops([5, 5])
    assert dora.flops([]) == 0
    identity = plan(framework="transformers", kind="dora", dim=3, target_modules=["linear_fc2"])
    assert (
        identity.flops([5], passes="forward")
        - plan(framework="transformers", dim=3, target_modules=["linear_fc2"]).flops([5], passes="forward")
        == rows + 2 * 2 * 3 * 40 * 40
    )


def test_a_rule_and_the_rules_of_a_configuration() -> None:
    trains = read({"model": MODEL, "peft": {"kind": "freeze", "freeze": ["linear_fc1", "linear_qkv.weight"]}}).trainable
    assert not trains.weights("decoder.layers.0.mlp.linear_fc1")
    assert trains("decoder.layers.0.mlp.linear_fc2")
    assert Trainable.of(trains) is trains


def test_what_is_not_priced_is_said() -> None:
    other = SimpleNamespace(dim=2, target_modules=["linear_fc2"], rank_pattern={"linear_fc2": 4})
    (sentence,) = compile_plan({"model": MODEL, "peft": other}).not_counted
    assert "rank_pattern" in sentence
