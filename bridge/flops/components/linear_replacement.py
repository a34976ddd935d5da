"""One square matrix in place of attention or of an MLP (Puzzle, arXiv:2411.19146; Nemotron Super and Ultra)."""

from __future__ import annotations

from bridge.flops.build import Build, Layer
from bridge.flops.rows import Channel, Mixer, Terms
from bridge.flops.terms import Role, Term

COMPONENT = "linear_replacement"


def linear_replacement(*, place: str, hidden_size: int, bias: bool, roles: Role = Role.NONE) -> list[Term]:
    """From the normed input to the residual stream; the matrix is the module ``place`` itself."""
    matrix = Term("linear", COMPONENT, hidden_size, hidden_size, inputs=("normed",), bias=hidden_size * bias, path=place)
    return [matrix.marked(roles)]


# ---- its rows ------------------------------------------------------------------------------------


def _terms(place: str, bias: str, roles: Role = Role.NONE) -> Terms:
    """The matrix in ``place``, which has a bias where the field ``bias`` gives one to what it replaces."""

    def terms(build: Build, layer: Layer) -> list[Term]:
        biased = build.shape.add_bias_linear or getattr(build.shape, bias)
        return linear_replacement(place=place, hidden_size=build.hidden_size, bias=biased, roles=roles)

    return terms


MIXER = Mixer(
    name="linear",
    option="block_configs",
    terms=_terms("self_attention", "add_proj_bias"),
    cache=lambda shape, layer: [],
    colour={COMPONENT: "grey"},
)
CHANNEL = Channel(name="linear", terms=_terms("mlp", "add_mlp_bias", Role.MLP))
