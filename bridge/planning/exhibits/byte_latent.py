"""Bytes against tokens: what a byte costs in a byte-latent transformer (BLT) and in a transformer over BPE tokens.

The closed form of the published interactive comparison: forward FLOPs per byte from three sliders.  The plan of a model with a
``byte_latent_config`` prices the architecture itself, on the bytes and patches of a real corpus (``compare_on_corpus``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from bridge.flops.components.byte_latent import LATENT
from bridge.flops.plan import Plan
from bridge.flops.shapes import ConfigError, whole

#: Heads, width and window of the local models, and the number of values that a byte can have.
LOCAL_HEADS, LOCAL_WIDTH, LOCAL_WINDOW, BYTE_VOCABULARY = 16, 1024, 512, 256


@dataclass(frozen=True)
class Setting:
    """What the comparison holds fixed while its sliders move.

    Attributes:
        context_bytes: text that a token or patch can look back on.
        bytes_per_token: mean bytes per BPE token.
        vocab_size: size of the BPE vocabulary.
        layers, heads: those of the BPE transformer and of the latent transformer.
    """

    context_bytes: int = 8192
    bytes_per_token: float = 4.4
    vocab_size: int = 128000
    layers: int = 26
    heads: int = 20


PUBLISHED = Setting()


@dataclass(frozen=True)
class Comparison:
    """Forward FLOPs per byte of a BPE transformer and of a byte-latent transformer.

    Attributes:
        bpe_per_byte: the BPE transformer.
        blt_global: the latent transformer over patches.
        blt_local: local encoder, local decoder and cross attention.
        attention_width: columns that attention is priced at: d_model rounded down to a multiple of the heads.
        narrowed_by: columns it lost that way; 0 where the heads divide d_model.
    """

    bpe_per_byte: float
    blt_global: float
    blt_local: float
    attention_width: int = 0
    narrowed_by: int = 0

    @property
    def blt_total(self) -> float:
        """Both parts of the byte-latent transformer."""
        return self.blt_global + self.blt_local

    @property
    def advantage(self) -> float:
        """Percent by which it costs more than BPE; negative where it costs less."""
        return 100 * (self.blt_total - self.bpe_per_byte) / self.bpe_per_byte

    @property
    def notice(self) -> str:
        """One sentence where the attention is narrower than the model, else empty."""
        if not self.narrowed_by:
            return ""
        return (
            f"the heads do not divide d_model={self.attention_width + self.narrowed_by}: attention is priced at "
            f"{self.attention_width} columns, {self.narrowed_by} fewer"
        )


def stack_flops(layers: float, heads: int, width: int, context: int, vocabulary: int) -> float:
    """Forward FLOPs per token of a decoder: embedding, q/k/v, scores and values, output projection, MLP of 4 x width, logits.

    Args:
        layers, heads, width: sizes of the decoder; heads that do not divide the width narrow the attention.
        context: keys that every token is priced at.
        vocabulary: columns of the output layer, 0 for none.
    """
    a = width // heads * heads
    return (
        4 * width
        + 6 * layers * width * a
        + 2 * layers * context * a
        + 2 * layers * a * width
        + 16 * layers * width**2
        + 2 * width * vocabulary
    )


def cross_attention_flops(layers: float, keys: float, width: int) -> float:
    """Forward FLOPs per byte of cross attention: four projections, and scores and values over ``keys`` keys."""
    return layers * (8 * width**2 + 4 * keys * width)


def compare(patch_size: float = 4.4, d_model: int = 2560, local_layers: int = 10, *, setting: Setting = PUBLISHED) -> Comparison:
    """The published comparison, to the last bit of its floating-point arithmetic.

    Args:
        patch_size: mean bytes per patch (slider: 1.0 to 10.0).
        d_model: width of the latent and of the BPE transformer (slider: 512 to 8192).
        local_layers: layers of the local encoder and decoder together (slider: 2 to 24); half of them have cross attention.
        setting: everything else.

    Raises:
        ConfigError: a value is not positive, or d_model is smaller than the number of heads.
    """
    _check_sliders(patch_size, d_model, local_layers, setting)
    layers, heads, text = setting.layers, setting.heads, setting.context_bytes
    tokens, patches = int(text / setting.bytes_per_token), int(text / patch_size)
    attention_width = d_model // heads * heads
    return Comparison(
        bpe_per_byte=stack_flops(layers, heads, d_model, tokens, setting.vocab_size) / setting.bytes_per_token,
        blt_global=stack_flops(layers, heads, d_model, patches, 0) / patch_size,
        blt_local=_local_flops(patch_size, local_layers),
        attention_width=attention_width,
        narrowed_by=d_model - attention_width,
    )


def _local_flops(patch_size: float, layers: int) -> float:
    return (
        stack_flops(layers, LOCAL_HEADS, LOCAL_WIDTH, LOCAL_WINDOW, BYTE_VOCABULARY)
        + cross_attention_flops(layers / 2, LOCAL_WINDOW, LOCAL_WIDTH)
        + cross_attention_flops(layers / 2, LOCAL_WINDOW // patch_size, LOCAL_WIDTH)
    )


def _check_sliders(patch_size: float, d_model: int, local_layers: int, setting: Setting) -> None:
    if not 0 < patch_size <= setting.context_bytes:
        raise ConfigError(f"patch_size={patch_size!r} must be a number of bytes above 0 and up to {setting.context_bytes}")
    whole("d_model", d_model, least=setting.heads)
    whole("local_layers", local_layers)


def iso_cost_width(
    patch_size: float, per_byte: float | None = None, local_layers: int = 10, *, setting: Setting = PUBLISHED
) -> float:
    """The width of the latent transformer at which a byte costs ``per_byte`` FLOPs.

    With width d and patch size p the latent transformer costs about 24 L d^2 / p per byte: patch size and width can rise
    together at equal cost only while d grows about as the square root of p.

    Args:
        patch_size: mean bytes per patch.
        per_byte: FLOPs of both parts together; what ``compare`` finds at its first slider positions when None.
        local_layers: layers of the local models.
        setting: everything else.

    Returns:
        The width as a real number (heads of any width: no narrowing).

    Raises:
        ConfigError: the local models alone cost more than that.
    """
    _check_sliders(patch_size, setting.heads, local_layers, setting)
    budget = compare(local_layers=local_layers, setting=setting).blt_total if per_byte is None else per_byte
    left = (budget - _local_flops(patch_size, local_layers)) * patch_size
    if left <= 0:
        raise ConfigError(
            f"per_byte={budget!r} leaves nothing for the latent transformer: {local_layers} local layers cost more; "
            "raise it or lower local_layers"
        )
    # left = 24 L d^2 + (4 + 2 L patches) d
    square, linear = 24 * setting.layers, 4 + 2 * setting.layers * int(setting.context_bytes / patch_size)
    return (sqrt(linear * linear + 4 * square * left) - linear) / (2 * square)


@dataclass(frozen=True)
class IsoCost:
    """One point of the iso-cost curve.

    Attributes:
        patch_size: bytes.
        width: the width that keeps the cost.
        root_width: what growth as the square root of the patch size predicts from the first point.
    """

    patch_size: float
    width: float
    root_width: float


def iso_cost_curve(
    patch_sizes: Sequence[float], per_byte: float | None = None, local_layers: int = 10, *, setting: Setting = PUBLISHED
) -> list[IsoCost]:
    """The width of equal cost for each patch size, beside the square-root law that starts at the first of them."""
    widths = [iso_cost_width(size, per_byte, local_layers, setting=setting) for size in patch_sizes]
    return [
        IsoCost(size, width, widths[0] * sqrt(size / patch_sizes[0])) for size, width in zip(patch_sizes, widths, strict=True)
    ]


def compare_on_corpus(
    byte_plan: Plan,
    token_plan: Plan,
    document_patches: Sequence[Sequence[int]],
    document_tokens: Sequence[int],
    passes: str = "forward",
) -> Comparison:
    """FLOPs per byte of two real models on one corpus.

    Args:
        byte_plan: the byte-latent transformer.
        token_plan: the transformer over BPE tokens.
        document_patches: the lengths of the patches of each document, in bytes.
        document_tokens: the number of tokens of each document.
        passes: ``forward`` or ``training``.
    """
    if len(document_patches) != len(document_tokens):
        raise ConfigError(f"{len(document_patches)} documents in patches, {len(document_tokens)} in tokens: give the same ones")
    sizes = [sum(patches) for patches in document_patches]
    total = sum(sizes)
    if not total:
        raise ConfigError("the corpus has no bytes")
    parts = byte_plan.breakdown(sizes, passes=passes, byte_patches=[len(patches) for patches in document_patches])
    latent = parts.pop(LATENT)
    return Comparison(
        bpe_per_byte=float(token_plan.flops(document_tokens, passes=passes) / total),
        blt_global=float(latent / total),
        blt_local=float(sum(parts.values()) / total),
    )
