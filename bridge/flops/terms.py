"""Terms: one matmul each, named after the weight it prices, with what flows into it and out of it.

A model is an ordered list of terms.  ``inputs`` and ``outputs`` name values (``hidden`` is the residual stream), which
determines the backward pass: see ``transforms.differentiate``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from bridge.flops.elementwise import NOTHING, Operations
from bridge.flops.statistics import SEQUENCES, TOKENS, Over, Shape, Statistic


class TermPlace(enum.Enum):
    """The place of a term that belongs to no decoder layer."""

    FIRST = "first"
    """Before the decoder: embeddings, towers, encoders."""
    MTP = "mtp"
    """After it: multi-token prediction."""
    LAST = "last"
    """At the end: the output layers, including those of multi-token prediction."""


class Pass(enum.Flag):
    """The passes of one matmul."""

    NONE = 0
    FORWARD = enum.auto()
    DGRAD = enum.auto()
    """Gradient of the first operand, the activations."""
    WGRAD = enum.auto()
    """Gradient of the second operand: the weight, or the other activation where there is no weight."""
    RECOMPUTE = enum.auto()
    """The forward pass once more, inside the backward pass (activation checkpointing)."""
    PADDING = enum.auto()
    """All passes of rows that only pad experts: executed, but not requested."""
    BACKWARD = DGRAD | WGRAD
    TRAINING = FORWARD | DGRAD | WGRAD


class Kind(enum.Enum):
    """What a convention may count or leave out."""

    LINEAR = "linear"
    CORE = "core"
    """Activation x activation: attention scores and their product with the values."""
    ROUTER = "router"
    GATE = "gate"
    """A projection to one number: the gate on the shared experts."""
    CONVOLUTION = "convolution"
    """Depthwise: k taps on n channels."""
    SCAN = "scan"
    """Per-row work that is not a matmul: the recurrence of a state-space layer or of the delta rule."""
    PATCH_EMBEDDING = "patch_embedding"
    NORM = "norm"
    """A vector of weights: not a matmul, but its parameters count and it may train."""
    LATENT_NORM = "latent_norm"
    """The norms inside MLA and before the MTP projection, which Megatron prices as k x 1 matmuls."""
    TABLE = "table"
    """Rows that are looked up or added: embeddings, attention sinks."""
    HYPER_CONNECTION = "hyper_connection"
    STREAM_MIXING = "stream_mixing"
    """The weighted sums of hyper-connections' streams."""
    JOIN = "join"
    """No work: a value made from others without a weight, which needs a gradient if any of them does."""
    ELEMENTWISE = "elementwise"
    """Not a matmul: ``operations`` on each row, which only the operation ledger counts."""


class Role(enum.Flag):
    """The role of a term, so that users of a plan need not match names or paths; an adapter has its layer's roles."""

    NONE = 0
    EMBEDDING = enum.auto()
    """The start of the residual stream."""
    LOOKED_UP = enum.auto()
    """A table of which each token reads one row."""
    OUTPUT = enum.auto()
    """The projection to the vocabulary."""
    IMAGES = enum.auto()
    """Runs only if there are images."""
    ENCODER = enum.auto()
    """Runs in an encoder or on its states, only if the encoder has input."""
    LATENT_UP = enum.auto()
    """MLA's projection from a latent to the keys and values of all heads."""
    LATENT_KEYS = enum.auto()
    """The product of MLA's queries with those keys."""
    LATENT_VALUES = enum.auto()
    """The product of the scores with those values."""
    TRAINING_ONLY = enum.auto()
    """Does not run in generation."""
    TEACHER = enum.auto()
    """Belongs to the teacher, which has its own number format."""
    ONLOOKER = enum.auto()
    """Belongs to a second model, whose parameters do not count."""
    MLP = enum.auto()
    EXPERTS = enum.auto()
    """A block of experts, whole."""
    SHARED_EXPERTS = enum.auto()
    LATENT_PROJECTION = enum.auto()
    """What megatron-core's ``mla_up_proj`` recomputes."""
    DELTA_PRODUCT_INPUT = enum.auto()
    DELTA_PRODUCT_CONVOLUTION = enum.auto()


@dataclass(frozen=True)
class Context:
    """Which keys a query sees; a convention turns it into a statistic and a factor.

    Attributes:
        shape: one of ``Shape``, by name or as a member; ConfigError names the known ones.
        sizes: window, top-k, chunk or (ratio, top-k), in tokens.
        over: the lengths it is summed over, one of ``statistics.Over``.
    """

    shape: Shape
    sizes: tuple[int, ...] = ()
    over: Over = Over.SEQUENCES

    def __init__(self, shape: Shape | str, sizes: tuple[int, ...] = (), over: Over | str = Over.SEQUENCES):
        self.__dict__.update(shape=Shape(shape), sizes=sizes, over=Over(over))


CAUSAL = Context("causal")

Rows = Statistic | Context


@dataclass(frozen=True)
class Term:
    """``rows x k x n`` multiply-accumulates.

    Attributes:
        name: the weight it prices (``linear_qkv``); for products without a weight what is multiplied (``query_key``).
        component: the line of the breakdown it belongs to.
        k, n: the reduced and the produced dimension; for a core the head width and the number of heads.
        rows: what is summed over the batch: a statistic, or an attention context.
        times: passes of each row through a matmul of this size (top-k experts), or a constant of a scan.
        inputs: the values it reads: one for a weight, two for a product of activations.
        outputs: the values it writes; writing to ``hidden`` adds to the residual stream.
        kind: by which conventions count a term or leave it out.
        weight: whether a k x n weight belongs to it.
        copies, active_copies: equal weights side by side (experts), and how many of them one token uses.
        bias: entries of a bias vector per copy.
        parts: what a fused weight is made of, in order: name and columns of each.
        path: the module path in megatron-core (``decoder.layers.3.mlp.linear_fc1``).
        place: where it runs: the number (from 0) of its decoder layer, or an end.
        tied: shares the weight of the module with this path; its parameters count there.
        allowed: passes that can ever run: forward only for what is detached from the loss.
        passes: the passes that do run, set by ``transforms``.
        operations: of one row, for work that is not a matmul.
        roles: see ``Role``.
    """

    name: str
    component: str
    k: int
    n: int
    rows: Rows = TOKENS
    times: Fraction = Fraction(1)
    inputs: tuple[str, ...] = ("hidden",)
    outputs: tuple[str, ...] = ("hidden",)
    kind: Kind = Kind.LINEAR
    weight: bool = True
    copies: int = 1
    active_copies: int = 1
    bias: int = 0
    parts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    place: int | TermPlace = TermPlace.LAST
    tied: str = ""
    allowed: Pass = Pass.TRAINING
    passes: Pass = Pass.FORWARD
    operations: Operations = NOTHING
    roles: Role = Role.NONE

    @property
    def has_weight(self) -> bool:
        """Whether it has anything to train."""
        return self.weight or bool(self.bias)

    @property
    def _one_copy(self) -> int:
        own_weight = self.weight and not self.tied
        return own_weight * self.k * self.n + self.bias

    @property
    def parameters(self) -> int:
        """Entries of the weights and biases."""
        return self._one_copy * self.copies

    @property
    def active_parameters(self) -> int:
        """Entries of those weights that one token uses."""
        return self._one_copy * self.active_copies

    def under(self, prefix: str, roles: Role = Role.NONE, **fields: Any) -> Term:
        """The same term inside a module: ``prefix`` goes before its path, ``roles`` are added; ``fields`` change too."""
        if roles:
            fields["roles"] = self.roles | roles
        return self.changed(path=prefix + (self.path or self.name), **fields)

    def changed(self, **fields: Any) -> Term:
        """``dataclasses.replace`` at a fifth of the time: a plan changes thousands of terms."""
        term = object.__new__(Term)
        term.__dict__.update(self.__dict__, **fields)
        return term

    def marked(self, roles: Role) -> Term:
        """The same term with more roles."""
        return self.changed(roles=self.roles | roles)


def onto(term: Term, *, stream: str, tokens: Statistic) -> Term:
    """A term of an ordinary layer put on another stream: ``stream.`` goes before its values, ``tokens`` are its rows."""
    return replace(
        term,
        rows=tokens if term.rows == TOKENS else term.rows,
        inputs=tuple(f"{stream}.{name}" for name in term.inputs),
        outputs=tuple(f"{stream}.{name}" for name in term.outputs),
    )


def norm(
    name: str,
    size: int,
    component: str,
    *,
    source: str,
    to: str,
    kind: Kind = Kind.NORM,
    bias: bool = False,
    rows: Rows = TOKENS,
    times: int = 1,
) -> Term:
    """A normalization's weight vector (and bias, for LayerNorm): parameters, but no matmul.

    ``kind=Kind.LATENT_NORM`` marks the norms that Megatron prices as a ``size x 1`` matmul.  ``times`` vectors of each row
    go through it (heads).
    """
    return Term(name, component, size, 1, rows, Fraction(times), (source,), (to,), kind, bias=size * bias, path=name)


def elementwise(name: str, component: str, operations: Operations, *on: str, rows: Rows = TOKENS) -> Term:
    """Work on values that is not a matmul, given as operations per row."""
    return Term(name, component, 0, 0, rows, inputs=on, outputs=on, kind=Kind.ELEMENTWISE, weight=False, operations=operations)


def softmax(
    component: str, pairs: Rows, *, heads: int, value_size: int, tokens: Rows = TOKENS, on: str = "scores", sinks: bool = False
) -> list[Term]:
    """What attention does between its two products: scale, softmax, and one addition fewer than products in each weighted sum.

    Args:
        component: line of the breakdown.
        pairs: query-key pairs.
        heads: heads, each with its own scores.
        value_size: width of what is summed up for one head.
        tokens: queries.
        on: the value that holds the scores.
        sinks: one more term in each sum of exponentials.
    """
    return [
        elementwise("scale", component, Operations(divisions=heads), on, rows=pairs),
        elementwise(
            "scale",
            component,
            Operations(square_roots=1),
            on,
            rows=SEQUENCES if tokens.over is Over.SEQUENCES else Statistic("count", tokens.over),
        ),
        elementwise("softmax", component, heads * Operations(additions=1, divisions=1, exponentiations=1), on, rows=pairs),
        elementwise(
            "softmax", component, heads * (Operations(exponentiations=1) if sinks else Operations(additions=-1)), on, rows=tokens
        ),
        elementwise("scores_value", component, Operations(additions=-heads * value_size), on, rows=tokens),
    ]


def core(
    name: str,
    component: str,
    rows: Rows,
    *,
    head_size: int,
    heads: int,
    inputs: tuple[str, str],
    output: str,
    times: Fraction = Fraction(1),
    allowed: Pass = Pass.TRAINING,
) -> Term:
    """A product of two activations, head by head: ``pairs x head_size x heads``."""
    return Term(name, component, head_size, heads, rows, times, inputs, (output,), Kind.CORE, weight=False, allowed=allowed)


def table(name: str, component: str, rows: int, n: int = 1, *, to: tuple[str, ...], source: str = "") -> Term:
    """Parameters that are looked up or added: no matmul, but what they are added to (``source``) needs their gradient."""
    return Term(name, component, rows, n, inputs=(source,) if source else (), outputs=to, kind=Kind.TABLE)


def join(*inputs: str, to: str) -> Term:
    """A value made from others without a matmul (activation, concatenation, sum)."""
    return Term("join", "", 0, 0, inputs=inputs, outputs=(to,), kind=Kind.JOIN, weight=False)
