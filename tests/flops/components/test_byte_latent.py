"""Parts of a byte-latent transformer, each beside transformers' own; ``tests/oracle`` runs whole models."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from torch import nn
from transformers.models.blt.configuration_blt import BltLocalEncoderConfig
from transformers.models.blt.modeling_blt import BltCrossAttention, BltTransformerLayer

from bridge.flops.components import byte_latent
from bridge.flops.terms import Context, Pass
from tests.flops.components.blocks import executed, priced, turns

SIZES = {"hidden_size": 12, "num_attention_heads": 3, "num_query_groups": 1}
CONFIG = BltLocalEncoderConfig(
    hidden_size=12, num_attention_heads=3, num_key_value_heads=1, intermediate_size=20, hidden_act="silu", dropout=0.0
)
CONFIG._attn_implementation = "eager"
BYTES, PATCHES, VECTORS = 11, 4, 2


def crossed(from_patches: bool, dense: bool = True, **options: Any) -> list[Any]:
    fields = {"source": "asking", "keys": "told", "to": "hidden"} | options
    return byte_latent.cross_attention(**SIZES, multiplicity=VECTORS, from_patches=from_patches, dense=dense, **fields)


@pytest.mark.parametrize("from_patches", [True, False])
def test_cross_attention(from_patches):
    module = BltCrossAttention(CONFIG, 0)
    of_bytes, of_patches = torch.zeros(1, BYTES, 12), torch.zeros(1, VECTORS * PATCHES, 12)
    asking, told = (of_patches, of_bytes) if from_patches else (of_bytes, of_patches)
    found = priced(crossed(from_patches), sequence_lengths=[BYTES], byte_patches=[PATCHES])
    assert found == executed(module, lambda: module(asking, told)[0])


@pytest.mark.parametrize("from_patches", [True, False])
def test_a_byte_meets_the_vectors_of_its_own_patch(from_patches):
    """Dense kernels compute every pair, sparse ones those of a byte and its patch; both products, forward."""
    own, every = (
        priced(crossed(from_patches, dense), sequence_lengths=[BYTES], byte_patches=[PATCHES])[0] for dense in (False, True)
    )
    assert every - own == 2 * 2 * 12 * VECTORS * (BYTES * PATCHES - BYTES)


def test_results_that_are_not_used_run_forward_only():
    forward, training, _ = priced(crossed(True, allowed=Pass.FORWARD), sequence_lengths=[BYTES], byte_patches=[PATCHES])
    assert forward == training == priced(crossed(True), sequence_lengths=[BYTES], byte_patches=[PATCHES])[0]


@pytest.mark.parametrize(("over", "stream"), [("sequences", "hidden"), ("byte_patches", "patches")])
def test_a_layer_on_bytes_or_on_patches(over, stream):
    module = BltTransformerLayer(CONFIG, 0)
    context = Context("causal", over=over)
    terms = byte_latent.layer(**SIZES, ffn_hidden_size=20, context=context, component="local", stream=stream)
    tokens = BYTES if over == "sequences" else PATCHES

    def run():
        output = module(torch.zeros(1, tokens, 12), position_embeddings=turns(tokens, 4))
        return output[0] if isinstance(output, tuple) else output

    assert priced(terms, sequence_lengths=[BYTES], byte_patches=[PATCHES]) == executed(module, run)
    assert {term.component for term in terms} == {"local"}
    assert {name for term in terms for name in (*term.inputs, *term.outputs)} & {"hidden", "patches"} == {stream}


def test_the_first_guess_of_a_patch():
    module = nn.Linear(12, VECTORS * 12, bias=False)
    terms = byte_latent.pooled_patches(hidden_size=12, multiplicity=VECTORS, allowed=Pass.TRAINING)
    batch = {"sequence_lengths": [BYTES], "byte_patches": [PATCHES]}
    assert priced(terms, **batch) == executed(module, lambda: module(torch.zeros(PATCHES, 12)))
    tied = byte_latent.pooled_patches(hidden_size=12, multiplicity=VECTORS, allowed=Pass.FORWARD, tied="local_encoder.projection")
    forward = 2 * PATCHES * 12 * VECTORS * 12
    assert priced(tied, **batch) == (forward, forward, 0)


def test_tables_ends_and_the_frozen_model():
    tables = byte_latent.byte_embedding(vocab_size=260, hidden_size=12, hash_tables=6, hash_vocab_size=50)
    assert priced(tables, sequence_lengths=[BYTES]) == (0, 0, 260 * 12 + 6 * 50 * 12)
    end = nn.Sequential(nn.RMSNorm(12), nn.Linear(12, 260, bias=False))
    head = byte_latent.head(hidden_size=12, vocab_size=260, component="output_layer")
    found = priced(head, sequence_lengths=[BYTES])
    assert found == executed(end, lambda: end(torch.zeros(BYTES, 12)))
    frozen = (term.changed(allowed=Pass.FORWARD) for term in head)
    assert priced(frozen, sequence_lengths=[BYTES]) == (found[0], found[0], found[2])
    between = byte_latent.projection("projection", 12, 30, "patch_states", "patches", "latent")
    assert priced([between], sequence_lengths=[BYTES], byte_patches=[PATCHES])[0] == 2 * PATCHES * 12 * 30
