"""What the terms of a block may depend on: the model's sizes, the switches of a convention and a framework, and its layer."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.flops.conventions import Convention
from bridge.flops.elementwise import ACTIVATIONS, NOTHING, Operations
from bridge.flops.frameworks import Framework
from bridge.flops.shapes import ConfigError, ModelShape
from bridge.flops.terms import CAUSAL, Context

#: Kinds of positions that turn queries and keys.
ROTARY = ("rope", "mrope", "yarn")


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        number: from 1, counted apart in the decoder and in MTP.
        mixer: the name of a row of ``registry.MIXERS``, or empty.
        channel: the name of a row of ``registry.CHANNELS``, or empty.
        context: which keys its attention sees.
        is_global: sees everything in a model that also has local layers.
        shares_kv: takes keys and values from an earlier layer.
        form: which of its mixer's forms stands here, where it has several (see ``rows.Mixer``).
        rotates: RoPE turns its queries and keys, if the model has RoPE at all.
        crosses: also attends to an encoder.
        num_query_groups, ffn_hidden_size: its own, where layers differ; 0: the model's.
        memory: its place in engram_layers, from 1; 0 for a layer without.
    """

    number: int
    mixer: str
    channel: str
    context: Context = CAUSAL
    is_global: bool = False
    shares_kv: bool = False
    form: int = 0
    rotates: bool = True
    crosses: bool = False
    num_query_groups: int = 0
    ffn_hidden_size: int = 0
    memory: int = 0


@dataclass(frozen=True)
class Build:
    """What a block is built from: the shape, the convention's and the framework's switches."""

    shape: ModelShape
    convention: Convention
    framework: Framework

    @property
    def fused(self) -> bool:
        """Whether linear layers that read the same values are one matmul."""
        return self.framework.fused

    @property
    def hidden_size(self) -> int:
        assert self.shape.hidden_size is not None  # reading.read has checked it
        return self.shape.hidden_size

    @property
    def heads(self) -> int:
        assert self.shape.num_attention_heads is not None
        return self.shape.num_attention_heads

    @property
    def vocabulary(self) -> int:
        """Columns of the output layer, padded or not as the convention has it."""
        assert self.shape.vocab_size is not None
        return self.shape.built_vocab_size if self.convention.padded_vocabulary else self.shape.vocab_size

    @property
    def norm_bias(self) -> bool:
        return self.shape.normalization == "LayerNorm"

    @property
    def activation(self) -> Operations:
        """What the activation does to one number; nothing where it is unknown, which the operation ledger reports."""
        return ACTIVATIONS.get(self.shape.activation, NOTHING)

    def rotated(self, layer: Layer, head_size: int) -> int:
        """Channels of a head that RoPE turns."""
        turns = self.shape.position_embedding_type in ROTARY and layer.rotates
        return int(head_size * self.shape.rotary_percent) if turns else 0


def required(shape: ModelShape, name: str) -> int:
    """A field that the model's mixer cannot do without; ConfigError where it is no positive integer."""
    value = getattr(shape, name)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        what = "is missing" if value is None else f"is {value!r}"
        variant = shape.experimental_attention_variant or ""
        raise ConfigError(f"model.{name} {what}: experimental_attention_variant={variant!r} needs a positive integer")
    return value
