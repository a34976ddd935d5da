"""Rows: the facts about a block that stand beside its formula in its own file.

Symbols of hybrid patterns, names of attention variants, caches, colors and what can be trained are not listed anywhere else:
``components.registry`` finds the rows and makes the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bridge.flops.build import Build, Layer
from bridge.flops.frameworks import Framework
from bridge.flops.shapes import ModelShape, VisionShape
from bridge.flops.terms import Context, Term


@dataclass(frozen=True)
class Cache:
    """What one layer keeps of the tokens it has seen (``planning.kv_cache`` asks how much that is).

    Attributes:
        name: what it is.
        entries: numbers per kept token; in all for a state.
        kept: the tokens that stay; None for a state, whatever the length.
        read: the tokens that one more query reads, where it does not read all that are kept.
        owned: False where an earlier layer keeps it and this one reads it.
        is_state: a recurrence sums into it, so that it is held in float32.
    """

    name: str
    entries: int
    kept: Context | None = None
    read: Context | None = None
    owned: bool = True
    is_state: bool = False


def recurrent(state: int, convolved: int, kernel: int) -> list[Cache]:
    """What a recurrence keeps: its state, and the last inputs of a short convolution over this many channels."""
    return [Cache("state", state, is_state=True), Cache("convolution_inputs", (kernel - 1) * convolved)]


Terms = Callable[[Build, Layer], list[Term]]
Caches = Callable[[ModelShape, Layer], list[Cache]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What all rows have.

    Attributes:
        name: unique among the rows of its kind.
        colour: line of the breakdown -> the name of a color (``report.colours.PALETTE``), for the lines that begin in this file.
        trains: our own training engine builds it; anything else can be counted only.
    """

    name: str
    colour: Mapping[str, str] = field(default_factory=dict, hash=False)
    trains: bool = False


@dataclass(frozen=True, kw_only=True)
class Part(Row):
    """What stands beside the blocks of a model: embeddings, output layer, cross attention, multi-token prediction.

    Attributes:
        option: the field of the model that asks for it, where one does.
        terms: what it adds to a layer.
        cache: what a layer keeps for it while a model generates.
    """

    option: str = ""
    terms: Terms = lambda build, layer: []
    cache: Caches = lambda shape, layer: []


@dataclass(frozen=True, kw_only=True)
class Channel(Row):
    """A block that mixes the channels of each token: an MLP, experts.

    Attributes:
        terms: from the normed input to the residual stream.
        symbol: its letter in ``hybrid_layer_pattern``.
        required: fields without a default that a model with this block has to set; ConfigError names the first that is missing.
        executed: where a framework's own code runs another computation than is priced, a sentence about both.
    """

    terms: Terms
    symbol: str = ""
    required: tuple[str, ...] = ()
    executed: Callable[[Framework], str] = lambda framework: ""


@dataclass(frozen=True, kw_only=True)
class Mixer(Channel):
    """A block that mixes tokens: attention, a recurrence.

    Attributes:
        cache: what a layer of it keeps while a model generates.
        option: the field of the model that selects it.
        variant: the values of that field that mean this row, old names included; none: any value that is set.
        layers: which decoder layers it then takes.
        beside: the mixer of the other layers; the model's ordinary one if empty.
        takes: the symbol of another row that this one takes over in models that set its option.
        form: (shape, number of the layer, whether in MTP) -> which of its forms stands there, where layers differ.
    """

    cache: Caches
    option: str = "experimental_attention_variant"
    variant: tuple[str, ...] = ()
    layers: Callable[[ModelShape], Sequence[bool]] | None = None
    beside: str = ""
    takes: str = ""
    form: Callable[[ModelShape, int, bool], int] | None = None

    def asked(self, shape: ModelShape) -> bool:
        """Whether a model asks for it in some of its layers."""
        value = getattr(shape, self.option)
        return self.layers is not None and (value in self.variant if self.variant else bool(value))


@dataclass(frozen=True, kw_only=True)
class Projector(Row):
    """The way from a vision tower's patches to the language model's tokens (``vision_config.projector_type``).

    Attributes:
        terms: from the last layer's patches to ``image_embeddings``.
        required: fields of the tower that it cannot do without.
        rotary: whether towers with this projector rotate queries and keys by the position of their patch.
    """

    terms: Callable[[VisionShape], list[Term]]
    required: tuple[str, ...] = ()
    rotary: bool = False
