"""The plan's integer equals what torch counts while transformers runs Qwen2-Audio on clips and text."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from oracle.counter import count

AUDIO = 9


def draw(seed: int) -> Qwen2AudioConfig:
    """A configuration with small, uneven sizes; the same for the same seed."""
    random = Random(seed)
    text = {
        "model_type": "qwen2", "hidden_size": 8 * random.randint(2, 5), "num_hidden_layers": random.randint(1, 3),
        "num_attention_heads": 2, "num_key_value_heads": random.choice([1, 2]), "intermediate_size": random.randint(10, 50),
        "vocab_size": random.randint(50, 200), "tie_word_embeddings": random.random() < 0.5,
    }  # fmt: skip
    audio = {
        "model_type": "qwen2_audio_encoder", "d_model": 12 * random.randint(1, 3), "encoder_layers": random.randint(1, 3),
        "encoder_attention_heads": 3, "encoder_ffn_dim": random.randint(10, 40), "num_mel_bins": random.randint(3, 9),
        "max_source_positions": random.randint(4, 9),
    }  # fmt: skip
    return Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=AUDIO)


@pytest.mark.parametrize("seed", range(3))
def test_clips_and_text(seed: int) -> None:
    config = draw(seed)
    model = Qwen2AudioForConditionalGeneration._from_config(config, attn_implementation="eager")
    clips, positions = 1 + seed, config.audio_config.max_source_positions
    tokens = [[1, *[AUDIO] * (positions // 2), 3, 4]] * clips
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.ones(clips, len(tokens[0]), dtype=torch.long),
        "input_features": torch.ones(clips, config.audio_config.num_mel_bins, 2 * positions),
        "feature_attention_mask": torch.ones(clips, 2 * positions, dtype=torch.long),
    }
    found = from_huggingface(config.to_dict())
    assert (found.source, found.not_counted) == ("read", ())
    plan = compile_plan(found, convention="executed")
    lengths: dict[str, Any] = {"sequence_lengths": [len(tokens[0])] * clips, "audio_frames": [2 * positions] * clips}
    assert plan.flops(passes="forward", **lengths) == count(lambda: model(**inputs))
    assert plan.flops(**lengths) == count(lambda: model(**inputs).logits.sum().backward())
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())
