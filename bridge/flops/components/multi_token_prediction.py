"""What a multi-token-prediction depth adds around its transformer layer (DeepSeek-V3, arXiv:2412.19437, section 2.2)."""

from __future__ import annotations

from bridge.flops.rows import Part
from bridge.flops.terms import Kind, Term, join, norm

COMPONENT = "mtp"


def entry(*, hidden_size: int, source: str, norm_bias: bool = False) -> list[Term]:
    """Norms over the last states (``source``) and the next token's embedding, and the projection of both: 2h -> h."""
    return [
        norm("enorm", hidden_size, COMPONENT, source="embedded", to="mtp_embedded", kind=Kind.LATENT_NORM, bias=norm_bias),
        norm("hnorm", hidden_size, COMPONENT, source=source, to="mtp_hidden", kind=Kind.LATENT_NORM, bias=norm_bias),
        join("mtp_embedded", "mtp_hidden", to="mtp_input"),
        Term("eh_proj", COMPONENT, 2 * hidden_size, hidden_size, inputs=("mtp_input",), outputs=("mtp_output",)),
        join("mtp_output", to="hidden"),
    ]


def exit(*, hidden_size: int, to: str, norm_bias: bool = False) -> Term:
    """The norm before the depth's output layer, which writes the states ``to``."""
    return norm("final_layernorm", hidden_size, COMPONENT, source="hidden", to=to, kind=Kind.LATENT_NORM, bias=norm_bias)


PART = Part(name=COMPONENT, option="mtp_num_layers", trains=True, colour={COMPONENT: "olive"})
