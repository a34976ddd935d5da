"""The front end of Whisper-style encoders and Qwen2-Audio's way out of one: transformers' own modules, frame by frame."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from torch import nn
from transformers import Qwen2AudioConfig
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder, Qwen2AudioMultiModalProjector

from bridge.flops.components.audio_encoder import audio_projector, frontend
from bridge.flops.elementwise import Operations
from tests.flops.components.blocks import executed, priced

CONFIG = Qwen2AudioConfig(
    audio_config={"d_model": 12, "encoder_layers": 1, "encoder_attention_heads": 3, "num_mel_bins": 5, "max_source_positions": 7},
    text_config={"model_type": "qwen2", "hidden_size": 8, "num_attention_heads": 2},
)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 13, 14])
def test_two_convolutions_the_second_of_stride_2(frames):
    encoder = Qwen2AudioEncoder(CONFIG.audio_config)
    parts = nn.ModuleList([encoder.conv1, encoder.conv2, encoder.embed_positions])
    terms = frontend(num_mel_bins=5, hidden_size=12, max_positions=7)
    mel = torch.zeros(2, 5, frames)
    assert priced(terms, audio_frames=[frames] * 2) == executed(parts, lambda: encoder.conv2(encoder.conv1(mel)))


@pytest.mark.parametrize("frames", [3, 5, 6, 13])
def test_what_pooling_leaves_is_projected(frames):
    encoder, projector = Qwen2AudioEncoder(CONFIG.audio_config), Qwen2AudioMultiModalProjector(CONFIG)
    states = torch.zeros(1, 12, (frames + 1) // 2)

    def run():
        return projector(encoder.layer_norm(encoder.avg_pooler(states).transpose(1, 2)))

    terms = audio_projector(hidden_size=12, out_hidden_size=8, pooling=2)
    assert priced(terms, audio_frames=[frames]) == executed(nn.ModuleList([encoder.layer_norm, projector]), run)


@pytest.mark.parametrize(("frames", "pooling", "tokens"), [(0, 2, 0), (2, 2, 0), (3, 2, 1), (5, 3, 1), (4, 3, 0), (6, 1, 3)])
def test_positions_that_fill_no_pool_are_dropped(frames, pooling, tokens):
    terms = audio_projector(hidden_size=12, out_hidden_size=8, pooling=pooling)
    assert priced(terms, audio_frames=[frames])[0] == 2 * tokens * 12 * 8


def test_paths():
    assert {term.path for term in frontend(num_mel_bins=5, hidden_size=12, max_positions=7) if term.has_weight} == {
        "audio_model.conv1", "audio_model.conv2", "audio_model.embed_positions",
    }  # fmt: skip


def test_an_average_of_a_pool():
    (pooling, *_) = audio_projector(hidden_size=12, out_hidden_size=8, pooling=3)
    assert pooling.operations == Operations(additions=12 * 2, divisions=12)
