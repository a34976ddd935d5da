"""Diffusion transformers: DiT (Peebles & Xie, arXiv:2212.09748) and Flux, whose first blocks keep text and image apart.

``hidden`` is the stream of image tokens, ``context.hidden`` that of text tokens; once per sample one vector ``conditioning`` says
how noisy the image is, and adaLN turns it into the scales and shifts of every block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bridge.flops.rows import Part
from bridge.flops.shapes import DiffusionShape
from bridge.flops.statistics import SEQUENCES, TOKENS, Statistic
from bridge.flops.terms import Context, Kind, Rows, Term, TermPlace, core, join, norm, table

COMPONENT = "diffusion"
CORE = "core_attention"
#: Channels of the sinusoidal embedding of a time step.
TIMESTEP_CHANNELS = 256
_PARTS = (("q", "query"), ("k", "key"), ("v", "value"))

TEXT_TOKENS = Statistic("length", "encoder")
#: Text and image tokens of a sample together.
JOINT_TOKENS = Statistic("length", "joint")
JOINT = Context("bidirectional", over="joint")
ALONE = Context("bidirectional")


def linear(name: str, k: int, n: int, source: str, to: str, rows: Rows = TOKENS) -> Term:
    """A linear layer with a bias."""
    return Term(name, COMPONENT, k, n, rows, inputs=(source,), outputs=(to,), bias=n)


def embedder(name: str, channels: int, hidden_size: int) -> list[Term]:
    """A two-layer MLP from a vector per sample to the conditioning."""
    terms = [
        linear("linear_1", channels, hidden_size, name, "inner", SEQUENCES),
        linear("linear_2", hidden_size, hidden_size, "inner", "conditioning", SEQUENCES),
    ]
    return [term.under(f"{name}.") for term in terms]


def class_labels(*, num_classes: int, hidden_size: int) -> Term:
    """The table of class labels, with one more row for no class."""
    return table("class_embedder", COMPONENT, num_classes + 1, hidden_size, source="conditioning", to=("conditioning",))


def modulation(name: str, hidden_size: int, vectors: int) -> Term:
    """adaLN: ``vectors`` scales, shifts and gates from the conditioning, once per sample."""
    return linear(name, hidden_size, vectors * hidden_size, "conditioning", "modulation", SEQUENCES)


def joint_block(*, hidden_size: int, num_attention_heads: int, ffn_hidden_size: int, head_norm: bool, text: bool) -> list[Term]:
    """One block of attention and MLP; with ``text`` the text has its own weights and both attend together (Flux, MM-DiT).

    Args:
        hidden_size: width of both streams.
        num_attention_heads: heads.
        ffn_hidden_size: inner width of the MLPs.
        head_norm: a norm over each query and key head.
        text: two streams instead of one.
    """
    head_size = hidden_size // num_attention_heads
    streams = [("", "", TOKENS)] + ([("context.", "context_", TEXT_TOKENS)] if text else [])
    terms: list[Term] = []
    for stream, prefix, rows in streams:
        hidden = f"{stream}hidden"
        terms.append(modulation(f"{prefix}adaln", hidden_size, 6))
        terms.append(join(hidden, "modulation", to=f"{stream}normed"))
        for part, value in _PARTS:
            terms.append(linear(f"{prefix}linear_{part}", hidden_size, hidden_size, f"{stream}normed", f"{stream}{value}", rows))
        if head_norm:
            for part, value in _PARTS[:2]:
                name = f"{prefix}{part}_layernorm"
                terms.append(norm(name, head_size, COMPONENT, source=f"{stream}{value}", to=f"{stream}{value}"))
    terms += [join(*(f"{stream}{value}" for stream, _, _ in streams), to=f"joint.{value}") for _, value in _PARTS]
    terms += attention(hidden_size=hidden_size, num_attention_heads=num_attention_heads, context=JOINT if text else ALONE)
    for stream, prefix, rows in streams:
        hidden = f"{stream}hidden"
        terms += [
            linear(f"{prefix}linear_proj", hidden_size, hidden_size, "joint.context", hidden, rows),
            join(hidden, "modulation", to=f"{stream}normed"),
            linear(f"{prefix}linear_fc1", hidden_size, ffn_hidden_size, f"{stream}normed", "inner", rows),
            linear(f"{prefix}linear_fc2", ffn_hidden_size, hidden_size, "inner", hidden, rows),
        ]
    return terms


def single_block(*, hidden_size: int, num_attention_heads: int, ffn_hidden_size: int) -> list[Term]:
    """Flux's later blocks: text and image are one sequence, attention and MLP run side by side and share their output matmul.

    Args:
        hidden_size: width of the stream.
        num_attention_heads: heads.
        ffn_hidden_size: inner width of the MLP.
    """
    head_size = hidden_size // num_attention_heads
    return [
        modulation("adaln", hidden_size, 3),
        join("joint.hidden", "modulation", to="joint.normed"),
        linear("linear_fc1", hidden_size, ffn_hidden_size, "joint.normed", "inner", JOINT_TOKENS),
        *(linear(f"linear_{p}", hidden_size, hidden_size, "joint.normed", f"joint.{v}", JOINT_TOKENS) for p, v in _PARTS),
        *(norm(f"{p}_layernorm", head_size, COMPONENT, source=f"joint.{v}", to=f"joint.{v}") for p, v in _PARTS[:2]),
        *attention(hidden_size=hidden_size, num_attention_heads=num_attention_heads, context=JOINT),
        join("joint.context", "inner", to="joined"),
        linear("linear_out", hidden_size + ffn_hidden_size, hidden_size, "joined", "joint.hidden", JOINT_TOKENS),
    ]


def attention(*, hidden_size: int, num_attention_heads: int, context: Context) -> list[Term]:
    """Everything attends to everything."""
    head_size = hidden_size // num_attention_heads

    def product(name: str, first: str, second: str, output: str) -> Term:
        return core(name, CORE, context, head_size=head_size, heads=num_attention_heads, inputs=(first, second), output=output)

    return [
        product("query_key", "joint.query", "joint.key", "scores"),
        product("scores_value", "scores", "joint.value", "joint.context"),
    ]


def final_layer(*, hidden_size: int, out_values: int) -> list[Term]:
    """adaLN once more, and the projection of every image token to its latent patch."""
    terms = [
        modulation("adaln", hidden_size, 2),
        join("hidden", "modulation", to="normed"),
        linear("linear", hidden_size, out_values, "normed", "prediction"),
    ]
    return [term.under("final_layer.") for term in terms]


# ---- the model -----------------------------------------------------------------------------------


def terms(shape: DiffusionShape) -> list[Term]:
    """A diffusion transformer: embedders, blocks with adaLN, final layer (DiT), or two kinds of blocks (Flux)."""
    hidden = (shape.num_attention_heads or 0) * (shape.attention_head_dim or 0)
    out_values = shape.patch_size**2 * (shape.out_channels or shape.in_channels or 0)
    return [
        *(term.changed(place=TermPlace.FIRST) for term in _embedders(shape, hidden)),
        *_blocks(shape, hidden),
        *final_layer(hidden_size=hidden, out_values=out_values),
    ]


def _embedders(shape: DiffusionShape, hidden: int) -> list[Term]:
    """Latents, text, and what conditions all blocks alike."""
    values = shape.patch_size**2 * (shape.in_channels or 0)
    terms = [replace(linear("x_embedder", values, hidden, "latents", "hidden"), kind=Kind.PATCH_EMBEDDING)]
    if shape.joint_attention_dim:
        terms.append(linear("context_embedder", shape.joint_attention_dim, hidden, "text", "context.hidden", TEXT_TOKENS))
    if shape.num_embeds_ada_norm:
        return terms
    terms += embedder("timestep_embedder", TIMESTEP_CHANNELS, hidden)
    if shape.guidance_embeds:
        terms += embedder("guidance_embedder", TIMESTEP_CHANNELS, hidden)
    if shape.pooled_projection_dim:
        terms += embedder("text_embedder", shape.pooled_projection_dim, hidden)
    return terms


def _blocks(shape: DiffusionShape, hidden: int) -> Iterator[Term]:
    """All blocks; in DiT each with its own embedders."""
    heads, ffn, first = shape.num_attention_heads or 0, shape.mlp_ratio * hidden, shape.num_layers or 0
    own: list[Term] = []
    if shape.num_embeds_ada_norm:
        labels = class_labels(num_classes=shape.num_embeds_ada_norm, hidden_size=hidden)
        own = [*embedder("timestep_embedder", TIMESTEP_CHANNELS, hidden), labels]
    text = bool(shape.joint_attention_dim)
    joint = joint_block(hidden_size=hidden, num_attention_heads=heads, ffn_hidden_size=ffn, head_norm=text, text=text)
    for i in range(first):
        yield from (term.under(f"decoder.layers.{i}.", place=i) for term in (*own, *joint))
    if shape.num_single_layers:
        single = single_block(hidden_size=hidden, num_attention_heads=heads, ffn_hidden_size=ffn)
        yield join("hidden", "context.hidden", to="joint.hidden")
        for i in range(first, first + shape.num_single_layers):
            yield from (term.under(f"decoder.layers.{i}.", place=i) for term in single)
        yield join("joint.hidden", to="hidden")
    # The last layer computes the first block's conditioning once more.
    yield from (replace(term.under("decoder.layers.0."), tied=f"decoder.layers.0.{term.path}", bias=0) for term in own)


ROOT = Part(name=COMPONENT, option="diffusion_config")
