"""Mixture of experts: router, routed experts (in the hidden or in a latent space), shared experts with their gate.

Shazeer et al., arXiv:1701.06538; shared experts: DeepSeekMoE, arXiv:2401.06066.  Dropless: every token visits exactly
``topk`` experts.
"""

from __future__ import annotations

from fractions import Fraction

from bridge.flops.build import Build, Layer
from bridge.flops.components.mlp import halves, mlp, width_factor
from bridge.flops.elementwise import ADDITION, MULTIPLICATION, NOTHING, SIGMOID, SILU, Operations, softmax_row
from bridge.flops.rows import Channel
from bridge.flops.terms import Kind, Role, Term, elementwise, join, norm, table

COMPONENT = "moe"


def moe(
    *,
    hidden_size: int,
    num_experts: int,
    topk: int,
    ffn_hidden_size: int,
    gated: bool,
    shared_ffn_hidden_size: int = 0,
    shared_gate: bool = False,
    latent_size: int = 0,
    fused: bool = True,
    routing_before_fc2: bool = True,
    bias: bool = False,
    router_bias: bool = False,
    expert_bias: bool = False,
    activation: Operations = SILU,
    sigmoid_scores: bool = False,
    branch_norms: bool = False,
) -> list[Term]:
    """The terms of one MoE block, from the normed input to the residual stream.

    Args:
        hidden_size: width of the residual stream.
        num_experts: routed experts.
        topk: experts per token.
        ffn_hidden_size: inner width of one routed expert.
        gated: gated experts (shared ones too).
        shared_ffn_hidden_size: inner width of the shared experts together, 0 for none.
        shared_gate: a sigmoid gate on the shared experts; it stays where their width is 0.
        latent_size: width of the space the routed experts work in, 0 for hidden_size.
        fused: the shared experts' gate and values in one matmul or one each.
        routing_before_fc2: routing weights multiply the experts' activations instead of their outputs.
        bias: biases on the routed experts' projections.
        router_bias: a bias on the router's logits.
        expert_bias: a correction bias per expert that is not trained by gradients (DeepSeek-V3).
        activation: the operations of the activation function on one number.
        sigmoid_scores: the router's scores are sigmoids instead of a softmax.
        branch_norms: the router and the routed experts read the residual stream, each through its own norm; their output
            and that of the shared experts have norms too (Gemma 4).
    """
    width = latent_size or hidden_size
    inner = ffn_hidden_size * (2 if gated else 1)

    def expert(name: str, k: int, n: int, source: str, to: str) -> Term:
        parts = halves(ffn_hidden_size) if gated and n == inner else ()
        one = Term(name, COMPONENT, k, n, times=Fraction(topk), inputs=(source,), outputs=(to,), bias=n * bias, parts=parts)
        return one.under("experts.", copies=num_experts, active_copies=topk)

    routed_input, router_input = ("routed_normed", "router_normed") if branch_norms else ("normed", "normed")
    router = Term("router", COMPONENT, hidden_size, num_experts, inputs=(router_input,), outputs=("routing",), kind=Kind.ROUTER)
    terms = [router.changed(bias=num_experts * router_bias)]
    if branch_norms:
        terms = [
            norm("router_layernorm", hidden_size, COMPONENT, source="hidden", to=router_input),
            norm("pre_experts_layernorm", hidden_size, COMPONENT, source="hidden", to=routed_input),
            *terms,
            table("per_expert_scale", COMPONENT, num_experts, source="routing", to=("routing",)).under("router."),
        ]
    scores = num_experts * SIGMOID if sigmoid_scores else softmax_row(num_experts)
    terms.append(elementwise("router_scores", COMPONENT, scores, "routing"))
    if expert_bias:
        terms.append(table("expert_bias", COMPONENT, num_experts, to=()).under("router."))
        terms.append(elementwise("router_scores", COMPONENT, num_experts * ADDITION, "routing"))
    if latent_size:
        terms.append(Term("fc1_latent_proj", COMPONENT, hidden_size, latent_size, inputs=(routed_input,), outputs=("latent",)))
    terms += [
        expert("linear_fc1", width, inner, "latent" if latent_size else routed_input, "inner"),
        join("inner", *(("routing",) if routing_before_fc2 else ()), to="activated"),
        elementwise("activation", COMPONENT, topk * ffn_hidden_size * activation, "activated"),
        elementwise("gate_product", COMPONENT, topk * ffn_hidden_size * (MULTIPLICATION if gated else NOTHING), "activated"),
        expert("linear_fc2", ffn_hidden_size, width, "activated", "routed"),
        elementwise("weighted_sum", COMPONENT, width * Operations(additions=topk - 1, multiplications=topk), "routed"),
        join("routed", "routing", to="combined") if latent_size else join("hidden", "routed", "routing", to="hidden"),
    ]  # fmt: skip
    if latent_size:
        terms.append(Term("fc2_latent_proj", COMPONENT, latent_size, hidden_size, inputs=("combined",)))
    if shared_ffn_hidden_size or shared_gate:
        shared = mlp(
            hidden_size=hidden_size,
            ffn_hidden_size=shared_ffn_hidden_size,
            gated=gated,
            fused=fused,
            component=COMPONENT,
            activation=activation,
        )
        shared.append(elementwise("shared_sum", COMPONENT, hidden_size * ADDITION, "hidden"))
        if shared_gate:
            shared.append(Term("gate_weight", COMPONENT, hidden_size, 1, inputs=("normed",), kind=Kind.GATE))
            shared.append(elementwise("shared_gate", COMPONENT, SIGMOID + hidden_size * MULTIPLICATION, "hidden"))
        terms += [term.under("shared_experts.", Role.SHARED_EXPERTS) for term in shared]
    if branch_norms:
        terms += [
            norm(f"post_{branch}_layernorm", hidden_size, COMPONENT, source="hidden", to="hidden")
            for branch in ("experts", "shared_experts")
        ]
    return terms


# ---- its row -------------------------------------------------------------------------------------


def _terms(build: Build, layer: Layer) -> list[Term]:
    shape = build.shape
    terms = moe(
        hidden_size=build.hidden_size,
        num_experts=shape.num_moe_experts or 1,
        topk=shape.moe_router_topk,
        ffn_hidden_size=shape.moe_ffn_hidden_size or shape.ffn_size,
        gated=shape.gated_linear_unit,
        shared_ffn_hidden_size=(shape.moe_shared_expert_intermediate_size or 0) * width_factor(shape, layer),
        # Shared experts of width 0 are there, gate and all; None is none.
        shared_gate=shape.moe_shared_expert_gate and shape.moe_shared_expert_intermediate_size is not None,
        latent_size=shape.moe_latent_size or 0,
        fused=build.fused,
        routing_before_fc2=build.framework.routing_before_fc2,
        bias=shape.add_bias_linear or shape.add_mlp_bias,
        router_bias=shape.add_bias_linear or shape.add_mlp_bias,
        expert_bias=shape.moe_router_enable_expert_bias,
        activation=build.activation,
        sigmoid_scores=shape.moe_router_score_function == "sigmoid",
        branch_norms=shape.moe_branch_norms,
    )
    return [term.under("mlp.", Role.EXPERTS) for term in terms]


_DENSE = f"{COMPONENT}: of routed experts those that a token visits are counted; transformers' own code runs all of them on each"

CHANNEL = Channel(
    name=COMPONENT,
    symbol="E",
    required=("num_moe_experts",),
    terms=_terms,
    executed=lambda framework: _DENSE if framework.dense_experts else "",
    trains=True,
    colour={COMPONENT: "violet"},
)
