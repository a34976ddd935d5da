"""Per-layer embeddings (Gemma 3n, Gemma 4 E2B/E4B): a small input of its own for every layer.

One projection of the embedded tokens makes the inputs of all layers (h -> L p); each layer gates its own and projects it
back (h -> p, p -> h): 3 h p multiply-accumulates per token and layer.
"""

from __future__ import annotations

from bridge.flops.build import Build, Layer
from bridge.flops.elementwise import ACTIVATIONS, ADDITION, MULTIPLICATION
from bridge.flops.rows import Part
from bridge.flops.terms import Role, Term, elementwise, join, norm, table

COMPONENT = "per_layer_embeddings"


def per_layer_input(*, hidden_size: int, num_layers: int, per_layer_size: int, vocab_size: int) -> list[Term]:
    """The table and the projection that make the inputs of all layers, from the embedded tokens."""
    width = num_layers * per_layer_size
    terms = [
        table("embed_tokens_per_layer", COMPONENT, vocab_size, width, to=("looked_up",)).marked(Role.LOOKED_UP),
        Term("per_layer_model_projection", COMPONENT, hidden_size, width, outputs=("projected",)),
        norm("per_layer_projection_norm", per_layer_size, COMPONENT, source="projected", to="projected", times=num_layers),
        join("looked_up", "projected", to="per_layer"),
        elementwise("per_layer_sum", COMPONENT, width * (ADDITION + MULTIPLICATION), "per_layer"),
    ]
    return [term.under("") for term in terms]


def per_layer_projection(*, hidden_size: int, per_layer_size: int) -> list[Term]:
    """Gate and projection of one layer, and the norm after them."""
    return [
        Term("per_layer_input_gate", COMPONENT, hidden_size, per_layer_size, outputs=("gated",)),
        join("gated", "per_layer", to="gated"),
        elementwise("per_layer_gate", COMPONENT, per_layer_size * (ACTIVATIONS["gelu_tanh"] + MULTIPLICATION), "gated"),
        Term("per_layer_projection", COMPONENT, per_layer_size, hidden_size, inputs=("gated",)),
        norm("post_per_layer_input_norm", hidden_size, COMPONENT, source="hidden", to="hidden"),
        elementwise("residual", COMPONENT, hidden_size * ADDITION, "hidden"),
    ]


# ---- its row -------------------------------------------------------------------------------------


def _terms(build: Build, layer: Layer) -> list[Term]:
    return per_layer_projection(hidden_size=build.hidden_size, per_layer_size=build.shape.hidden_size_per_layer_input or 0)


PART = Part(name=COMPONENT, option="hidden_size_per_layer_input", terms=_terms)
