"""A layer whose attention ends in a narrower width, in which the experts work (MaxText's qwen3_custom_moe)."""

from __future__ import annotations

from collections.abc import Iterable

from bridge.flops.elementwise import ADDITION
from bridge.flops.rows import Part
from bridge.flops.terms import Term, elementwise, norm

COMPONENT = "moe"


def bottleneck(block: Iterable[Term], *, hidden_size: int, width: int) -> list[Term]:
    """The second half of the layer, from ``narrow`` to the residual stream.

    Args:
        block: a channel mixer of ``width``.
        hidden_size: width of the residual stream.
        width: what attention writes.
    """

    def narrowed(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple("mixed" if value == "hidden" else value for value in values)

    inside = [term.changed(inputs=narrowed(term.inputs), outputs=narrowed(term.outputs)).under("mlp.") for term in block]
    return [
        norm("latent_norm", width, COMPONENT, source="narrow", to="normed"),
        *inside,
        Term("layer_up_projection", COMPONENT, width, hidden_size, inputs=("mixed",)),
        elementwise("residual", COMPONENT, hidden_size * ADDITION, "hidden"),
    ]


# ---- its row -------------------------------------------------------------------------------------

PART = Part(name="bottleneck", option="attention_output_size")
