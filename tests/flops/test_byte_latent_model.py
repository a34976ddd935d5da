"""The byte-latent architecture by hand, its errors, and two real models on one text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.flops.reading import read
from bridge.flops.shapes import StackShape
from bridge.flops.statistics import triangle, window_pairs
from bridge.planning.byte_patches import space_patches
from bridge.planning.exhibits.byte_latent import compare_on_corpus

BYTES, PATCHES = [900, 77], [200, 31]


def byte_latent(config=None):
    """The plan of a byte-latent model, the published one by default."""
    return compile_plan({"byte_latent_config": config or {}, "framework": "transformers"}, "exact")


def read_shape(config):
    return read({"byte_latent_config": config}).byte_latent


def test_the_published_model_by_hand():
    """Multiply-accumulates of every part, twice."""
    b, p = sum(BYTES), sum(PATCHES)
    window = sum(window_pairs(n, 512) for n in BYTES)
    causal = sum(map(triangle, PATCHES))

    def stack(layers, h, f, tokens, pairs):
        return 2 * layers * (tokens * (4 * h * h + 3 * h * f) + 2 * pairs * h)

    h, k = 1024, 2
    attend = 2 * k * b * h  # each byte meets the two vectors of its patch, for scores and for values
    encoder_cross = p * h * k * h + p * k * 2 * h * h + b * 2 * h * h + attend
    decoder_cross = 9 * (b * 2 * h * h + p * k * 2 * h * h + attend) + p * 2048 * k * h
    assert byte_latent().breakdown(BYTES, passes="forward", byte_patches=PATCHES) == {
        "entropy_model": stack(14, 768, 2048, b, window) + 2 * b * 768 * 260,
        "local_encoder": stack(1, h, 2730, b, window),
        "cross_attention": 2 * (encoder_cross + decoder_cross),
        "latent_transformer": stack(25, 2048, 5632, p, causal),
        "local_decoder": stack(9, h, 2816, b, window),
        "output_layer": 2 * b * h * 260,
    }


@pytest.mark.parametrize(("config", "tables"), [({}, 6), ({"encoder_hash_byte_group_size": (2, 9)}, 2)])
def test_one_table_for_each_length_of_hashed_bytes(config, tables):
    """In the published model three billion entries, of which none is multiplied by."""
    found = byte_latent(config).parameters_by_module()["local_encoder.encoder_hash_tok_embedding"]
    assert found == tables * 500_002 * 1024


@pytest.mark.parametrize(
    ("patcher", "window"),
    [
        (None, 512),
        ({}, 512),
        ({"sliding_window": 7}, 7),
        ({"sliding_window": None}, None),
        (SimpleNamespace(sliding_window=7), 7),
    ],
    ids=str,
)
def test_the_window_of_the_entropy_model(patcher, window):
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    if isinstance(patcher, dict):
        patcher |= sizes
    elif patcher is not None:
        vars(patcher).update(sizes)
    assert read_shape({"patcher_config": patcher} if patcher is not None else {}).patcher_sliding_window == window


@pytest.mark.parametrize(
    ("config", "runs"), [({}, True), ({"patch_in_forward": True}, True), ({"patch_in_forward": False}, False)]
)
def test_a_model_that_does_not_patch_by_itself_has_no_entropy_model(config, runs):
    assert (read_shape(config).patcher_config is not None) == runs


def test_the_entropy_model_only_runs_forward():
    plan = byte_latent()
    forward, training = (plan.breakdown(BYTES, passes=passes, byte_patches=PATCHES) for passes in ("forward", "training"))
    assert training.pop("entropy_model") == forward.pop("entropy_model")
    assert training["latent_transformer"] == 3 * forward["latent_transformer"]
    without = byte_latent({"patcher_config": None})
    assert without.breakdown(BYTES, byte_patches=PATCHES) == training
    assert plan.parameters()["trainable"] == without.parameters()["total"]


def test_two_models_on_one_text():
    documents = [b"the cat sat on the mat", b"and so did the rat"]
    patches = [space_patches(document) for document in documents]
    tokens = [len(document.split()) for document in documents]
    byte_plan = byte_latent()
    token_plan = compile_plan({"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 1000}, "exact")
    found = compare_on_corpus(byte_plan, token_plan, patches, tokens)
    size = sum(map(len, documents))
    parts = byte_plan.breakdown(list(map(len, documents)), passes="forward", byte_patches=list(map(len, patches)))
    assert found.bpe_per_byte == token_plan.flops(tokens, passes="forward") / size
    assert found.blt_global == parts["latent_transformer"] / size
    assert found.blt_local == (sum(parts.values()) - parts["latent_transformer"]) / size
    with pytest.raises(ConfigError, match="2 documents in patches, 1 in tokens"):
        compare_on_corpus(byte_plan, token_plan, patches, tokens[:1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"encoder_config": {"hidden_size": 64}}, "encoder_config.num_hidden_layers is missing"),
        ({"encoder_config": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 3}}, "must divide"),
        ({"encoder_config": StackShape(num_hidden_layers=1, hidden_size=64, num_attention_heads=4)}, "must agree"),
        ({"cross_attn_k": 0}, "cross_attn_k=0 must be a positive integer"),
    ],
)  # fmt: skip
def test_impossible_configs(config, message):
    with pytest.raises(ConfigError, match=message):
        byte_latent(config)


def test_every_sequence_has_its_patches():
    with pytest.raises(ConfigError, match="byte_patches has 1 entries, sequence_lengths 2"):
        byte_latent().flops([10, 20], byte_patches=[3])
