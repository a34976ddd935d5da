"""What training modes do to terms: passes, adapters, models that look on, recomputation; by hand numbers."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.flops.frameworks import MEGATRON, TRANSFORMERS
from bridge.flops.shapes import ModelShape
from bridge.flops.terms import Pass, Role, Term
from bridge.flops.transforms import Lora, Trainable, differentiate, layer_index, matches, recomputes_weights, with_recompute

#: Width 4, MLP 8, vocabulary 10, one head: multiply-accumulates of one sequence of 3 tokens.
SMALL = {"num_layers": 2, "hidden_size": 4, "ffn_hidden_size": 8, "num_attention_heads": 1, "vocab_size": 10}
QKV, CORE, PROJ, FC1, FC2, LOGITS = 3 * 4 * 12, 6 * 4, 3 * 16, 3 * 32, 3 * 32, 3 * 40
LAYER = QKV + 2 * CORE + PROJ + FC1 + FC2
FORWARD = 2 * LAYER + LOGITS


def macs(passes: str = "training", trainable: Any = None, framework: str | None = None, **fields: Any) -> int:
    plan = compile_plan(SMALL | fields, "exact", trainable=trainable, framework=framework)
    return plan.flops([3], passes=passes) // 2


def chain(*names: str) -> list[Term]:
    return [Term(name, "mlp", 2, 2, path=f"decoder.layers.{i}.mlp.{name}") for i, name in enumerate(names)]


# ---- passes ----------------------------------------------------------------------------------------------------------


def test_a_gradient_starts_where_something_trains():
    terms = differentiate(chain("a", "b", "c"), lambda path: path.endswith(".b"), MEGATRON)
    # megatron-core computes the gradient of the input wherever a weight trains
    assert [term.passes for term in terms] == [Pass.FORWARD, Pass.TRAINING, Pass.FORWARD | Pass.DGRAD]


def test_weights_and_biases_train_apart():
    bias_only = Trainable(weights=lambda path: False, biases=lambda path: path.endswith(".a"))
    terms = [term.changed(bias=2) for term in chain("a", "b")]
    assert [term.passes for term in differentiate(terms, bias_only, MEGATRON)] == [Pass.FORWARD, Pass.FORWARD | Pass.DGRAD]
    assert [bias_only.parameters(term) for term in terms] == [2, 0]


def test_a_weight_that_is_detached_from_the_loss_asks_for_no_gradient():
    first, second = chain("a", "b")
    terms = differentiate([first.changed(allowed=Pass.FORWARD), second], lambda path: path.endswith(".a"), TRANSFORMERS)
    assert [term.passes for term in terms] == [Pass.FORWARD, Pass.FORWARD]


def test_everything_trains_three_times_and_nothing_once():
    assert macs() == 3 * FORWARD
    assert macs(trainable=lambda path: False) == FORWARD


@pytest.mark.parametrize(
    ("path", "patterns", "named"),
    [
        ("decoder.layers.1.mlp.linear_fc1", ["linear_fc1"], True),
        ("decoder.layers.1.mlp.linear_fc1", ["linear_fc2"], False),
        ("decoder.layers.1.mlp.linear_fc1", ["*.layers.1.*"], True),
        ("decoder.layers.11.mlp.linear_fc1", ["*.layers.1.*"], False),
        ("decoder.layers.1.mlp.linear_fc1", ["decoder.layers.1"], True),
        ("decoder.layers.11.mlp.linear_fc1", ["decoder.layers.1"], False),
    ],
)
def test_patterns(path, patterns, named):
    assert matches(path, patterns) is named


def test_layers_are_found_by_their_path():
    assert layer_index("decoder.layers.12.mlp.linear_fc1") == 12
    assert layer_index("mtp.layers.0.transformer_layer.mlp.linear_fc1") is None
    assert layer_index("teacher_model.decoder.layers.3.mlp.linear_fc1") is None


# ---- adapters --------------------------------------------------------------------------------------------------------


def test_parts_of_a_fused_layer_get_adapters_of_their_own():
    lora = Lora(2, ("linear_q", "linear_v"))
    assert lora.wanted("decoder.layers.0.self_attention.linear_qkv", ("linear_q", "linear_k", "linear_v")) == (
        "linear_q", "linear_v",
    )  # fmt: skip
    assert Lora(2, ("linear_qkv",)).wanted("self_attention.linear_q") == ("linear_q",)
    assert Lora(2, ("linear_qkv",)).wanted("self_attention.linear_proj") == ()


def test_a_target_that_is_no_layer_is_one_sentence():
    cfg = {"model": SMALL, "peft": {"kind": "lora", "dim": 2, "target_modules": ["linear_qvk"]}}
    with pytest.raises(ConfigError, match="peft.target_modules: 'linear_qvk' matches no linear layer of this model; choose from"):
        compile_plan(cfg)


def test_a_teacher_and_a_reference_run_forward():
    teacher = SMALL | {"num_layers": 3}
    plan = compile_plan({"model": SMALL, "teacher": teacher, "reference_model": True}, "exact")
    assert plan.flops([3]) == 2 * (3 * FORWARD + (FORWARD + LAYER) + FORWARD)
    assert plan.breakdown([3])["teacher_model"] == 2 * (FORWARD + LAYER)
    assert plan.breakdown([3])["reference_model"] == 2 * FORWARD


# ---- recomputation ---------------------------------------------------------------------------------------------------


def again(framework: str = "megatron", **fields: Any) -> int:
    """Multiply-accumulates that run once more."""
    return macs("hardware", framework=framework, **fields) - macs("training", framework=framework, **fields)


FULL = {"recompute_granularity": "full", "recompute_method": "uniform"}


def test_whole_layers_run_again_or_stop_at_what_the_backward_pass_asks_for():
    assert again(**FULL) == 2 * LAYER
    # torch's own checkpointing stops before the last matmul, whose operands are all that is asked for.
    assert again("transformers", **FULL) == 2 * (LAYER - FC2)
    block = FULL | {"recompute_method": "block", "recompute_num_layers": 1}
    assert again(**block) == again(**FULL) // 2


@pytest.mark.parametrize(("module", "run"), [("core_attn", 2 * CORE), ("mlp", FC1 + FC2), ("layernorm", 0), ("moe_act", 0)])
def test_modules_run_again(module, run):
    assert again(recompute_granularity="selective", recompute_modules=[module]) == 2 * run


def test_what_has_no_backward_pass_is_not_run_again():
    frozen = {"trainable": lambda path: path.startswith("output_layer")}
    assert again(recompute_granularity="selective", **frozen) == 0
    # Whole layers have one all the same: their input is made to need a gradient.
    assert again(**FULL, **frozen) == 2 * LAYER
    assert macs(**FULL, **frozen) == FORWARD + (2 * (LAYER + 2 * CORE)) + 2 * LOGITS


def test_unset_modules_are_the_core():
    assert again(recompute_granularity="selective") == again(recompute_granularity="selective", recompute_modules=["core_attn"])


@pytest.mark.parametrize(
    ("granularity", "modules", "weights"),
    [
        ("full", None, True),
        ("selective", None, False),
        ("selective", ["core_attn", "moe_act"], False),
        ("selective", ["mlp"], True),
        (None, ["mlp"], False),
    ],
)
def test_which_recomputation_has_weights(granularity, modules, weights):
    assert recomputes_weights(ModelShape(recompute_granularity=granularity, recompute_modules=modules)) is weights


@pytest.mark.parametrize("module", ["gdn_norm_out", "mhc", "gdp_in_proj", "something_new"])
def test_an_unknown_module_leaves_flops_and_makes_only_the_hardware_passes_unknown(module):
    """Names of megatron-core's that this model has no layers for are unknown too: it would refuse them."""
    options = {"recompute_granularity": "selective", "recompute_modules": ["core_attn", module]}
    plan = compile_plan(SMALL | options, "exact")
    sentence = f"recompute_modules has {module!r}: its recomputation is unknown, so hardware FLOPs (HFU) are unknown"
    assert plan.hardware_unknown == plan.not_counted == (sentence,)
    assert plan.flops([3]) == 2 * 3 * FORWARD
    assert plan.flops([3], passes="forward") == 2 * FORWARD
    vector = plan.measure([3])
    for evaluate in (
        plan.evaluate,
        plan.evaluate_components,
        lambda vector, passes: plan.evaluate_stages(vector, 2, None, passes),
    ):
        with pytest.raises(ConfigError) as caught:
            evaluate(vector, "hardware")
        assert str(caught.value) == sentence


def test_modules_without_matmuls_are_known_where_the_model_has_them():
    linear = {
        "experimental_attention_variant": "gdn", "linear_attention_freq": 2, "linear_key_head_dim": 2, "linear_value_head_dim": 2,
        "linear_num_key_heads": 1, "linear_num_value_heads": 1,
    }  # fmt: skip
    plan = compile_plan(SMALL | linear | {"recompute_granularity": "selective", "recompute_modules": ["gdn_norm_out"]}, "exact")
    assert plan.hardware_unknown == plan.not_counted == ()
    assert plan.flops([3], passes="hardware") == plan.flops([3])


def test_a_first_module_takes_a_term_that_two_name():
    terms = with_recompute(
        differentiate(
            [
                Term(
                    name,
                    "moe",
                    2,
                    2,
                    path=f"decoder.layers.0.mlp.shared_experts.{name}",
                    roles=Role.EXPERTS | Role.SHARED_EXPERTS,
                )
                for name in ("linear_fc1", "linear_fc2")
            ],
            lambda path: True,
            MEGATRON,
        ),
        ModelShape(recompute_granularity="selective", recompute_modules=["moe", "shared_experts"]),
        MEGATRON,
    )
    assert [term.passes for term in terms] == [Pass.TRAINING | Pass.RECOMPUTE] * 2


@pytest.mark.parametrize("framework", ["megatron", "transformers"])
@pytest.mark.parametrize(
    ("target", "gated", "parameters"),
    [("up_proj", True, 3 * (4 + 8)), ("linear_fc1_up", False, 3 * (4 + 8)), ("up_proj", False, 3 * (4 + 8)),
     ("gate_up_proj", True, 3 * (4 + 16))],
)  # fmt: skip
def test_the_up_projection(target: str, gated: bool, parameters: int, framework: str) -> None:
    """Rank 3: one of two input layers, the only one where there is no gate, or both; transformers has them apart."""
    fields = SMALL | {"gated_linear_unit": gated}
    plan = compile_plan({"model": fields, "peft": {"dim": 3, "target_modules": [target]}}, "exact", framework=framework)
    found = plan.parameters()["trainable"]
    apart = framework == "transformers" and target == "gate_up_proj"
    assert found == 2 * (2 * 3 * (4 + 8) if apart else parameters)
