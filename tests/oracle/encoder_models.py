"""Tiny models of transformers that have an encoder: T5, BERT and Whisper."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from oracle.counter import count

BERT = ("bert", "camembert", "roberta", "xlm-roberta")
_CLASSES = {"t5": AutoModelForSeq2SeqLM, "whisper": AutoModelForSpeechSeq2Seq} | dict.fromkeys(BERT, AutoModelForMaskedLM)


def draw(model_type: str, seed: int) -> PreTrainedConfig:
    """A configuration with small, uneven sizes; the same for the same seed."""
    random = Random(f"{model_type} {seed}")
    heads = random.randint(1, 4)
    width, inner, layers = 2 * heads * random.randint(2, 6), random.randint(10, 60), random.randint(1, 4)
    vocab, tied = random.randint(50, 200), random.random() < 0.5
    values: dict[str, Any]
    if model_type == "t5":
        values = {
            "d_model": width, "d_kv": random.randint(3, 9), "d_ff": inner, "num_heads": heads, "num_layers": layers,
            "num_decoder_layers": random.choice([None, random.randint(1, 4)]),
            "relative_attention_num_buckets": 2 * random.randint(4, 8),
            "feed_forward_proj": ("relu", "gated-gelu", "gated-silu", "gelu")[seed % 4],
        }  # fmt: skip
    elif model_type in BERT:
        values = {
            "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
            "max_position_embeddings": random.randint(30, 60), "type_vocab_size": random.randint(1, 3),
            "tie_word_embeddings": tied,
        }  # fmt: skip
    else:
        values = {
            "d_model": width, "encoder_layers": layers, "decoder_layers": random.randint(1, 4), "decoder_ffn_dim": inner,
            "encoder_ffn_dim": random.randint(10, 60), "encoder_attention_heads": random.choice([1, 2]),
            "decoder_attention_heads": heads, "num_mel_bins": random.randint(3, 9), "tie_word_embeddings": tied,
            "max_source_positions": random.randint(3, 12), "max_target_positions": random.randint(20, 30),
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
        }  # fmt: skip
    return CONFIG_MAPPING[model_type](vocab_size=vocab, **values)


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """The model, with unfused attention."""
    return _CLASSES[config.model_type].from_config(config, attn_implementation="eager")


@dataclass
class Batch:
    """Sequences of one length, and what their encoder reads."""

    model: PreTrainedModel
    sequences: int
    length: int
    encoded: int
    """Tokens of the encoder's input (T5)."""

    @property
    def lengths(self) -> dict[str, list[int]]:
        """The arguments of ``plan.flops`` that describe this batch."""
        config = self.model.config
        sizes: dict[str, list[int]] = {"sequence_lengths": [self.length] * self.sequences}
        if config.model_type == "t5":
            sizes["encoder_lengths"] = [self.encoded] * self.sequences
        if config.model_type == "whisper":
            sizes["audio_frames"] = [2 * config.max_source_positions] * self.sequences
        return sizes

    def forward(self) -> int:
        """FLOPs of one forward pass."""
        return count(self._logits)

    def training(self) -> int:
        """FLOPs of one forward and one backward pass."""
        return count(lambda: self._logits().sum().backward())

    def _logits(self) -> torch.Tensor:
        config, tokens = self.model.config, torch.zeros(self.sequences, self.length, dtype=torch.long)
        if config.model_type in BERT:
            return self.model(input_ids=tokens).logits
        if config.model_type == "t5":
            read = {"input_ids": torch.zeros(self.sequences, self.encoded, dtype=torch.long)}
        else:
            read = {"input_features": torch.zeros(self.sequences, config.num_mel_bins, 2 * config.max_source_positions)}
        return self.model(**read, decoder_input_ids=tokens, use_cache=False).logits
