"""A Whisper-style audio encoder (Radford et al., arXiv:2212.04356): two convolutions over mel frames, the second of stride 2.

The transformer layers over the halved frames are the ordinary ones (see ``model.audio_terms``).
"""

from __future__ import annotations

from bridge.flops.elementwise import ACTIVATIONS, ADDITION, Operations
from bridge.flops.statistics import Statistic
from bridge.flops.terms import Kind, Term, elementwise, norm, table

COMPONENT = "audio_model"
PROJECTION = "audio_projection"
KERNEL = 3
STRIDE = 2

FRAMES = Statistic("length", "audio")
#: Positions after the second convolution.
POSITIONS = Statistic("strided", "audio", (STRIDE,))


def frontend(*, num_mel_bins: int, hidden_size: int, max_positions: int) -> list[Term]:
    """Both convolutions, one matmul per output position, and the table of positions.

    Args:
        num_mel_bins: channels of the spectrogram.
        hidden_size: width of the encoder.
        max_positions: rows of the position table.
    """
    terms = [
        Term("conv1", COMPONENT, KERNEL * num_mel_bins, hidden_size, FRAMES, inputs=("mel",), outputs=("conv1",),
             kind=Kind.PATCH_EMBEDDING, bias=hidden_size),
        elementwise("activation", COMPONENT, hidden_size * ACTIVATIONS["gelu"], "conv1", rows=FRAMES),
        Term("conv2", COMPONENT, KERNEL * hidden_size, hidden_size, POSITIONS, inputs=("conv1",), outputs=("audio.hidden",),
             kind=Kind.PATCH_EMBEDDING, bias=hidden_size),
        elementwise("activation", COMPONENT, hidden_size * ACTIVATIONS["gelu"], "audio.hidden", rows=POSITIONS),
        table("embed_positions", COMPONENT, max_positions, hidden_size, source="audio.hidden", to=("audio.hidden",)),
        elementwise("embed_positions", COMPONENT, hidden_size * ADDITION, "audio.hidden", rows=POSITIONS),
    ]  # fmt: skip
    return [term.under("audio_model.") for term in terms]


def audio_projector(*, hidden_size: int, out_hidden_size: int, pooling: int) -> list[Term]:
    """Qwen2-Audio's way into the language model: average pooling, a norm, one matmul.

    Args:
        hidden_size: width of the encoder.
        out_hidden_size: width of the language model.
        pooling: positions averaged into one token.
    """
    rows, pooled = Statistic("strided_quotient", "audio", (STRIDE, pooling)), Operations(additions=pooling - 1, divisions=1)
    terms = [
        elementwise("pooling", PROJECTION, hidden_size * pooled, "audio.hidden", rows=rows),
        norm("layer_norm", hidden_size, PROJECTION, source="audio.hidden", to="audio.pooled", bias=True, rows=rows),
        Term("linear", PROJECTION, hidden_size, out_hidden_size, rows, inputs=("audio.pooled",), outputs=("image_embeddings",),
             bias=out_hidden_size),
    ]  # fmt: skip
    return [term.under("audio_projection.") for term in terms]
