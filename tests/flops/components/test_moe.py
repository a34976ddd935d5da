"""Experts beside transformers' own blocks: routed, shared, gated, in a latent space, with biases and with norms of branches."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from torch import nn
from transformers import DeepseekV3Config, Gemma4TextConfig, GptOssConfig, MixtralConfig, NemotronHConfig, Qwen2MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextDecoderLayer
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMoE
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from bridge.flops.components.moe import moe
from bridge.flops.components.registry import CHANNELS
from bridge.flops.elementwise import MULTIPLICATION, NOTHING, SIGMOID, SILU, softmax_row
from bridge.flops.frameworks import FRAMEWORKS
from bridge.flops.terms import Kind, Pass, Role
from tests.flops.components.blocks import executed, in_layer, macs, plan_of, priced

#: Five experts of width 7, two for each token.
FIELDS: dict[str, Any] = {"num_moe_experts": 5, "moe_router_topk": 2, "moe_ffn_hidden_size": 7, "gated_linear_unit": True}
SIZES: dict[str, Any] = {"hidden_size": 12, "num_experts_per_tok": 2}


def mixtral() -> nn.Module:
    return MixtralSparseMoeBlock(MixtralConfig(**SIZES, num_local_experts=5, intermediate_size=7))


def qwen2() -> nn.Module:
    config = Qwen2MoeConfig(**SIZES, num_experts=5, moe_intermediate_size=7, shared_expert_intermediate_size=9)
    return Qwen2MoeSparseMoeBlock(config)


def deepseek() -> nn.Module:
    config = DeepseekV3Config(
        **SIZES, n_routed_experts=5, moe_intermediate_size=7, n_shared_experts=2, n_group=1, topk_group=1, num_attention_heads=4
    )
    return DeepseekV3MoE(config)


def gpt_oss() -> nn.Module:
    return GptOssMLP(GptOssConfig(**SIZES, num_local_experts=5, intermediate_size=7))


def nemotron(latent: int | None) -> nn.Module:
    config = NemotronHConfig(
        **SIZES, n_routed_experts=5, moe_intermediate_size=7, moe_shared_expert_intermediate_size=9, moe_latent_size=latent,
        n_group=1, topk_group=1, mlp_hidden_act="relu2",
    )  # fmt: skip
    return NemotronHMoE(config)


BLOCKS = {
    "routed": (mixtral, {}),
    "shared and gated": (qwen2, {"moe_shared_expert_intermediate_size": 9, "moe_shared_expert_gate": True}),
    "shared": (deepseek, {"moe_shared_expert_intermediate_size": 14, "moe_router_score_function": "sigmoid"}),
    "biases": (gpt_oss, {"add_mlp_bias": True}),
    "not gated": (lambda: nemotron(None), {"gated_linear_unit": False, "moe_shared_expert_intermediate_size": 9}),
    "latent": (
        lambda: nemotron(6),
        {"gated_linear_unit": False, "moe_shared_expert_intermediate_size": 9, "moe_latent_size": 6},
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_transformers(name):
    build, fields = BLOCKS[name]
    module = build()
    for parameter in module.parameters():
        nn.init.normal_(parameter)

    def run() -> torch.Tensor:
        output = module(torch.ones(2, 7, 12))
        return output[0] if isinstance(output, tuple) else output

    terms = in_layer(FIELDS | fields, channel=True)
    assert priced(terms, sequence_lengths=[7, 7]) == executed(module, run)


def test_norms_and_scales_of_the_branches_of_gemma_4():
    """Its dense MLP stands where others have shared experts."""
    config = Gemma4TextConfig(
        hidden_size=12, intermediate_size=9, num_hidden_layers=1, num_attention_heads=4, layer_types=["full_attention"],
        enable_moe_block=True, num_experts=5, top_k_experts=2, moe_intermediate_size=7,
    )  # fmt: skip
    layer = Gemma4TextDecoderLayer(config, 0)
    mine = ("router.", "experts.", "mlp.", "post_feedforward_layernorm_", "pre_feedforward_layernorm_2")
    entries = sum(parameter.numel() for name, parameter in layer.named_parameters() if name.startswith(mine))
    terms = in_layer(FIELDS | {"moe_branch_norms": True, "moe_shared_expert_intermediate_size": 9}, channel=True)
    assert plan_of(terms).parameters()["total"] == entries
    assert macs(terms, 1) == 12 * 5 + 2 * 3 * 12 * 7 + 3 * 12 * 9


def test_a_token_uses_its_own_experts_alone():
    found = plan_of(in_layer(FIELDS | {"add_mlp_bias": True}, channel=True)).parameters()
    expert = 12 * 14 + 14 + 7 * 12 + 12
    router = 12 * 5 + 5
    assert (found["total"], found["active"]) == (5 * expert + router, 2 * expert + router)


def test_a_correction_bias_counts_and_no_gradient_trains_it():
    plain, corrected = (in_layer(FIELDS | {"moe_router_enable_expert_bias": on}, channel=True) for on in (False, True))
    assert plan_of(corrected).parameters()["total"] - plan_of(plain).parameters()["total"] == 5
    assert plan_of(corrected).flops([7]) == plan_of(plain).flops([7])
    (bias,) = [term for term in corrected if term.name == "expert_bias"]
    assert (bias.outputs, bias.path) == ((), "mlp.router.expert_bias")


@pytest.mark.parametrize(("width", "gate", "gates"), [(None, True, 0), (0, True, 1), (0, False, 0), (9, True, 1), (9, False, 0)])
def test_shared_experts_of_width_0_keep_their_gate(width, gate, gates):
    fields = FIELDS | {"moe_shared_expert_intermediate_size": width, "moe_shared_expert_gate": gate}
    terms = in_layer(fields, channel=True)
    assert sum(term.kind is Kind.GATE for term in terms) == gates
    shared = [term for term in terms if Role.SHARED_EXPERTS in term.roles]
    assert macs(shared, 1) == 3 * 12 * (width or 0) + 12 * gates


def test_the_width_of_the_dense_mlp_where_experts_have_none():
    terms = in_layer({"num_moe_experts": 5, "moe_router_topk": 2}, channel=True)
    assert {(term.k, term.n) for term in terms if term.path.startswith("mlp.experts")} == {(12, 20), (20, 12)}


@pytest.mark.parametrize(("latent", "before"), [(0, True), (0, False), (6, True), (6, False)])
def test_where_routing_weights_are_multiplied(latent, before):
    """Frozen experts whose router trains need an input gradient only behind the place where its weights come in."""
    terms = moe(
        hidden_size=12, num_experts=5, topk=2, ffn_hidden_size=7, gated=False, latent_size=latent, routing_before_fc2=before
    )
    plan = plan_of(terms, trains=lambda path: path == "router")
    with_gradient = [term.name for term in plan.terms if term.kind is Kind.LINEAR and term.passes != Pass.FORWARD]
    assert with_gradient == ["linear_fc2"] * before + ["fc2_latent_proj"] * bool(latent)


def test_frameworks_that_run_every_expert_say_so():
    said = {name: CHANNELS["moe"].executed(framework) for name, framework in FRAMEWORKS.items()}
    assert {name for name, sentence in said.items() if sentence} == {
        "transformers_dense_experts", "transformers_dense_experts_reentrant",
    }  # fmt: skip


@pytest.mark.parametrize(("score", "one"), [("sigmoid", 5 * SIGMOID), ("softmax", softmax_row(5))])
def test_what_is_not_a_matmul(score, one):
    """Scores of all experts; products with the gate in those that a token visits, and the sum of what they return."""
    terms = in_layer(FIELDS | {"moe_router_score_function": score}, channel=True)
    done = {term.name: term.operations for term in terms if term.kind is Kind.ELEMENTWISE}
    assert done["router_scores"] == one
    assert done["activation"] == 2 * 7 * SILU
    assert done["gate_product"] == 2 * 7 * MULTIPLICATION
    assert (done["weighted_sum"].additions, done["weighted_sum"].multiplications) == (12, 2 * 12)
    plain = in_layer(FIELDS | {"gated_linear_unit": False}, channel=True)
    assert [term.operations for term in plain if term.name == "gate_product"] == [NOTHING]


def test_what_a_fused_expert_is_made_of():
    parts = [term.parts for term in in_layer(FIELDS, channel=True) if term.path.startswith("mlp.experts.")]
    assert parts == [(("linear_fc1_gate", 7), ("linear_fc1_up", 7)), ()]
