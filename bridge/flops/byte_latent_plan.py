"""The byte-latent transformer (Pagnoni et al., arXiv:2412.09871) on the same terms as every other model.

Its cost follows from two numbers a sequence: how many bytes it has, and into how many patches they fall (``byte_patches``).
The fields are those of Hugging Face's ``blt`` configs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from operator import mul
from typing import Any

from bridge.flops import conventions, frameworks, reading, transforms
from bridge.flops.components import byte_latent as blocks
from bridge.flops.conventions import Convention
from bridge.flops.lengths import in_python, whole_lengths
from bridge.flops.moments import Number
from bridge.flops.plan import Plan
from bridge.flops.shapes import ConfigError
from bridge.flops.terms import Context, Pass, Term, join, table


@dataclass(kw_only=True)
class StackShape:
    """One of the transformers inside; the names are Hugging Face's."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    """Inner width of the MLP; 8/3 x hidden_size when unset."""

    def check(self, name: str) -> None:
        """ConfigError where a size is impossible."""
        for item in fields(StackShape):
            value = getattr(self, item.name)
            if value is None and item.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise ConfigError(f"{name}.{item.name}={value!r} must be a positive integer")
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ConfigError(
                f"{name}: num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size} and be a "
                f"multiple of num_key_value_heads={self.num_key_value_heads}"
            )


@dataclass(kw_only=True)
class ByteLatentShape:
    """Everything about a byte-latent transformer that decides what a byte costs.  Defaults: the published 1B model."""

    encoder_config: StackShape = field(
        default_factory=lambda: StackShape(num_hidden_layers=1, hidden_size=1024, num_attention_heads=16)
    )
    global_config: StackShape = field(
        default_factory=lambda: StackShape(num_hidden_layers=25, hidden_size=2048, num_attention_heads=16, intermediate_size=5632)
    )
    decoder_config: StackShape = field(
        default_factory=lambda: StackShape(num_hidden_layers=9, hidden_size=1024, num_attention_heads=16, intermediate_size=2816)
    )
    patcher_config: StackShape | None = field(
        default_factory=lambda: StackShape(num_hidden_layers=14, hidden_size=768, num_attention_heads=12, intermediate_size=2048)
    )
    """The entropy model; None where patches come from elsewhere (fixed strides, spaces)."""
    vocab_size: int = 260
    """Bytes and four special symbols."""
    cross_attn_k: int = 2
    """Vectors of the local width that stand for one patch."""
    encoder_cross_attn_all_layers: bool = False
    decoder_cross_attn_all_layers: bool = True
    local_attention_window_len: int | None = 512
    """Window of the local models in bytes; None for none."""
    patcher_sliding_window: int | None = 512
    encoder_hash_byte_group_size: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    """Lengths of the byte n-grams that are hashed into tables."""
    encoder_hash_byte_group_vocab: int = 500002
    encoder_hash_byte_group_nb_functions: int = 1

    @property
    def hash_tables(self) -> int:
        return len(self.encoder_hash_byte_group_size) * self.encoder_hash_byte_group_nb_functions

    @property
    def stacks(self) -> dict[str, StackShape]:
        """The transformers inside, by name."""
        named = {name: getattr(self, name) for name in ("encoder_config", "global_config", "decoder_config", "patcher_config")}
        return {name: stack for name, stack in named.items() if stack is not None}

    def check(self) -> None:
        """ConfigError where a size is impossible."""
        for name, stack in self.stacks.items():
            stack.check(name)
        for name in ("vocab_size", "cross_attn_k", "encoder_hash_byte_group_vocab", "encoder_hash_byte_group_nb_functions"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise ConfigError(f"{name}={value!r} must be a positive integer")
        if self.encoder_config.hidden_size != self.decoder_config.hidden_size:
            raise ConfigError(
                f"encoder_config.hidden_size={self.encoder_config.hidden_size} and decoder_config.hidden_size="
                f"{self.decoder_config.hidden_size} must agree: the decoder starts from the encoder's bytes"
            )


def read_shape(config: Any) -> ByteLatentShape:
    """The shape of a Hugging Face ``blt`` config (object or mapping), or of a mapping with the fields of ByteLatentShape."""
    if isinstance(config, ByteLatentShape):
        return config
    get = reading.get

    def stack(source: Any) -> StackShape:
        values = {item.name: get(source, item.name) for item in fields(StackShape)}
        missing = [item.name for item in fields(StackShape) if values[item.name] is None and item.default is not None]
        if missing:
            raise ConfigError(f"a transformer of the byte-latent model has no {missing[0]}: set it to a positive integer")
        return StackShape(**values)

    known: dict[str, Any] = {}
    for item in fields(ByteLatentShape):
        value = get(config, item.name)
        if value is not None:
            known[item.name] = stack(value) if item.name.endswith("_config") else value
    for part in ("encoder", "decoder"):
        everywhere = get(get(config, f"{part}_config"), "cross_attn_all_layers")
        if everywhere is not None:
            known[f"{part}_cross_attn_all_layers"] = everywhere
    # A field that is there and None means "none", not "the default".
    absent = object()
    for name in ("local_attention_window_len", "patcher_config"):
        value = config.get(name, absent) if isinstance(config, dict) else getattr(config, name, absent)
        if value is None:
            known[name] = None
    patcher = get(config, "patcher_config")
    if patcher is not None and (isinstance(patcher, dict) is False or "sliding_window" in patcher):
        known["patcher_sliding_window"] = get(patcher, "sliding_window")
    if get(config, "patch_in_forward") is False:
        known["patcher_config"] = None
    return ByteLatentShape(**known)


def byte_latent_terms(shape: ByteLatentShape, convention: Convention) -> list[Term]:
    """All terms of a byte-latent transformer in the order of its forward pass."""
    encoder, decoder, latent, patcher = shape.encoder_config, shape.decoder_config, shape.global_config, shape.patcher_config
    # A dense kernel holds every byte against every patch.
    dense = convention.statistic(Context("window", (1,)))[1].kind == "square"
    terms: list[Term] = []

    def layer(stack: StackShape, component: str, context: Context, stream: str = "hidden") -> list[Term]:
        return blocks.layer(
            hidden_size=stack.hidden_size,
            ffn_hidden_size=stack.intermediate_size or int(8 * stack.hidden_size / 3),
            num_attention_heads=stack.num_attention_heads,
            num_query_groups=stack.num_key_value_heads or stack.num_attention_heads,
            context=context,
            component=component,
            stream=stream,
        )

    def bytes_seen(window: int | None) -> Context:
        return Context("window", (window,)) if window else Context("causal")

    def cross(stack: StackShape, *, from_patches: bool, source: str, keys: str, to: str, allowed: Pass) -> list[Term]:
        return blocks.cross_attention(
            hidden_size=stack.hidden_size,
            num_attention_heads=stack.num_attention_heads,
            num_query_groups=stack.num_key_value_heads or stack.num_attention_heads,
            multiplicity=shape.cross_attn_k,
            from_patches=from_patches,
            dense=dense,
            source=source,
            keys=keys,
            to=to,
            allowed=allowed,
        )

    def put(part: str, new: Iterable[Term]) -> None:
        terms.extend(term.under(f"{part}.") for term in new)

    if patcher is not None:
        width = patcher.hidden_size
        model = [table("embed_tokens", blocks.ENTROPY_MODEL, shape.vocab_size, width, to=("hidden",))]
        for number in range(patcher.num_hidden_layers):
            whole = layer(patcher, blocks.ENTROPY_MODEL, bytes_seen(shape.patcher_sliding_window))
            model += [term.under(f"layers.{number}.") for term in whole]
        model += blocks.head(hidden_size=width, vocab_size=shape.vocab_size, component=blocks.ENTROPY_MODEL)
        put("patcher", map(blocks.frozen, model))

    width, local = encoder.hidden_size, bytes_seen(shape.local_attention_window_len)
    embedding = blocks.byte_embedding(
        vocab_size=shape.vocab_size,
        hidden_size=width,
        hash_tables=shape.hash_tables,
        hash_vocab_size=shape.encoder_hash_byte_group_vocab,
    )
    put("local_encoder", embedding)
    for number in range(encoder.num_hidden_layers):
        put(f"local_encoder.layers.{number}", layer(encoder, "local_encoder", local))
        last = number == encoder.num_hidden_layers - 1
        if last or shape.encoder_cross_attn_all_layers:
            # Each layer starts the patches anew: only the last layer's are read.
            allowed = Pass.TRAINING if last else Pass.FORWARD
            tied = "" if last else "local_encoder.patch_embedding_projection"
            pooled = blocks.pooled_patches(hidden_size=width, multiplicity=shape.cross_attn_k, allowed=allowed, tied=tied)
            asked = cross(encoder, from_patches=True, source="patch_query", keys="hidden", to="patch_states", allowed=allowed)
            put("local_encoder", pooled)
            put(f"local_encoder.cross_attn_layers.{number if shape.encoder_cross_attn_all_layers else 0}", asked)

    if width * shape.cross_attn_k == latent.hidden_size:
        terms.append(join("patch_states", to="patches"))
    else:
        put("global_transformer", [
            blocks.projection("token_embedding_projection", width * shape.cross_attn_k, latent.hidden_size,
                              component=blocks.LATENT, source="patch_states", to="patch_input"),
            join("patch_input", to="patches"),
        ])  # fmt: skip
    for number in range(latent.num_hidden_layers):
        whole = layer(latent, blocks.LATENT, Context("causal", over="byte_patches"), "patches")
        put(f"global_transformer.layers.{number}", whole)

    put("local_decoder", [
        blocks.projection("patch_embedding_projection", latent.hidden_size, width * shape.cross_attn_k,
                          component=blocks.CROSS_ATTENTION, source="patches", to="patch_keys"),
    ])  # fmt: skip
    for number in range(decoder.num_hidden_layers):
        if number == 0 or shape.decoder_cross_attn_all_layers:
            told = cross(decoder, from_patches=False, source="hidden", keys="patch_keys", to="hidden", allowed=Pass.TRAINING)
            put(f"local_decoder.cross_attn_layers.{number}", told)
        put(f"local_decoder.layers.{number}", layer(decoder, "local_decoder", local))
    terms += blocks.head(hidden_size=width, vocab_size=shape.vocab_size, component="output_layer")
    return terms


def _all_but_the_entropy_model(path: str) -> bool:
    return not path.startswith("patcher.")


class ByteLatentPlan:
    """What text costs a byte-latent transformer, from the bytes and the patches of each sequence.

    Attributes:
        shape: the architecture.
        plan: its terms as a plan; the statistics are sums over bytes, over patches, and over both.
    """

    def __init__(self, config: Any = None, convention: str = "exact", *, trainable: Callable[[str], bool] | None = None):
        """Compile a Hugging Face ``blt`` config, a ByteLatentShape, or None for the published 1B model."""
        self.shape = ByteLatentShape() if config is None else read_shape(config)
        self.shape.check()
        may_train = trainable or _all_but_the_entropy_model

        def build(how: Convention) -> tuple[Term, ...]:
            return tuple(transforms.differentiate(byte_latent_terms(self.shape, how), may_train, frameworks.TRANSFORMERS))

        record = conventions.get(convention)
        self.plan = Plan(record, build(record), (), may_train, build)

    def measure(self, sequence_bytes: Sequence[int], sequence_patches: Sequence[int]) -> list[int]:
        """The vector of a batch: bytes and number of patches of each sequence."""
        sequences = in_python(whole_lengths("sequence_bytes", sequence_bytes))
        patches = in_python(whole_lengths("sequence_patches", sequence_patches))
        if len(sequences) != len(patches):
            raise ConfigError(f"{len(sequences)} sequences have {len(patches)} numbers of patches: give one each")
        lengths = {"sequences": sequences, "byte_patches": patches, "cross_products": tuple(map(mul, sequences, patches))}
        return [statistic.sum(lengths[statistic.over]) for statistic in self.plan.statistics]

    def flops(self, sequence_bytes: Sequence[int], sequence_patches: Sequence[int], passes: str = "training") -> Number:
        """FLOPs of a batch."""
        return self.plan.evaluate(self.measure(sequence_bytes, sequence_patches), passes)

    def breakdown(
        self, sequence_bytes: Sequence[int], sequence_patches: Sequence[int], passes: str = "training"
    ) -> dict[str, Number]:
        """FLOPs of a batch by component; they add up to ``flops``."""
        return self.plan.evaluate_components(self.measure(sequence_bytes, sequence_patches), passes)

    def parameters(self) -> dict[str, int]:
        """Weights: all, those one byte uses, those that train."""
        return self.plan.parameters()
