"""The operation ledger: any model against arithmetic that counts itself."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.flops.components import audio_encoder, per_layer_embeddings, vision_projector, vision_tower
from bridge.flops.components.gated_delta_net import gated_delta_net
from bridge.flops.components.hyper_connections import hyper_connections
from bridge.flops.components.kimi_delta_attention import kimi_delta_attention
from bridge.flops.components.latent_attention import latent_attention
from bridge.flops.components.mamba import mamba
from bridge.flops.conventions import EXACT
from bridge.flops.elementwise import ACTIVATIONS, Operations
from bridge.flops.terms import Context, Kind
from bridge.planning.ledger import COUNTED, Ledger
from tests.flops.published import MODELS, full_config


def columns(cost):
    return (cost.additions, cost.multiplications, cost.divisions, cost.exponentiations, cost.square_roots)


def test_decoding_is_one_pass_over_all_positions():
    """Token by token the same work as at once, for attention that only looks back."""
    causal = Ledger({"model": QWEN_SMALL}, "exact")
    at_once, one_by_one = causal.cost([30]), causal.cost([20]) + causal.decode(20, 10)
    roots = 10 * QWEN_SMALL["num_layers"]
    assert one_by_one.total == at_once.total + 10 * roots


def test_a_decode_step_runs_one_row_against_all_keys():
    ledger = Ledger({"model": QWEN_SMALL})
    for cached in (1, 9, 80):
        assert columns(ledger.decode(cached)) == counted(QWEN_SMALL, 1, cached + 1)


def test_a_model_without_its_sizes():
    with pytest.raises(ConfigError, match=r"model\.vocab_size is missing"):
        Ledger({"hidden_size": 8})


# ---- any model: arithmetic that counts itself ------------------------------------------------------------------------

QWEN_SMALL = {
    "num_layers": 2, "hidden_size": 12, "ffn_hidden_size": 10, "num_attention_heads": 3, "num_query_groups": 1, "vocab_size": 17,
    "gated_linear_unit": True, "add_qkv_bias": True,
}  # fmt: skip


class Tally:
    """A number whose arithmetic is counted."""

    counts: Counter[str] = Counter()

    def __init__(self, value):
        self.value = value

    def _with(self, kind, value):
        Tally.counts[kind] += 1
        return Tally(value)

    def __add__(self, other):
        return self._with("+", self.value + other.value)

    def __mul__(self, other):
        return self._with("*", self.value * other.value)

    def __truediv__(self, other):
        return self._with("/", self.value / other.value)

    def __neg__(self):
        return Tally(-self.value)

    def exp(self):
        return self._with("exp", math.exp(self.value))

    def log(self):
        return self._with("exp", math.log(abs(self.value)))

    def sqrt(self):
        return self._with("sqrt", math.sqrt(abs(self.value)))


ONE = Tally(1.0)


def fold(numbers):
    total = numbers[0]
    for number in numbers[1:]:
        total = total + number
    return total


def dot(a, b):
    return fold([x * y for x, y in zip(a, b, strict=True)])


@dataclass
class Model:
    """A transformer in scalar arithmetic: every operation it does is one that the formulas say."""

    shape: dict
    random: Random

    def weights(self, n):
        return [Tally(self.random.random()) for _ in range(n)]

    def linear(self, x, n, bias=False):
        out = [dot(x, self.weights(len(x))) for _ in range(n)]
        return [y + b for y, b in zip(out, self.weights(n), strict=True)] if bias else out

    def norm(self, x):
        size = Tally(len(x))
        if self.shape.get("normalization") == "LayerNorm":
            mean = fold(x) / size
            x = [y + -mean for y in x]
            deviation = (dot(x, x) / size).sqrt()
            scaled = [y / deviation * w for y, w in zip(x, self.weights(len(x)), strict=True)]
            return [y + b for y, b in zip(scaled, self.weights(len(x)), strict=True)]
        root = (dot(x, x) / size).sqrt()
        return [y / root * w for y, w in zip(x, self.weights(len(x)), strict=True)]

    def rope(self, head):
        turned = int(len(head) * self.shape.get("rotary_percent", 1.0))
        mixed = [y * c + z * s for y, z, c, s in zip(head[:turned], head[:turned], *[self.weights(turned)] * 2, strict=True)]
        return mixed + head[turned:]

    def heads(self, x, number, size, bias, turned):
        found = [x[i * size : (i + 1) * size] for i in range(number)] if turned is None else []
        if turned is not None:
            flat = self.linear(x, number * size, bias)
            found = [flat[i * size : (i + 1) * size] for i in range(number)]
            if turned:
                if self.shape.get("qk_layernorm"):
                    found = [self.norm(head) for head in found]
                found = [self.rope(head) for head in found]
        return found

    def attention(self, rows, keys_before):
        shape = self.shape
        number, groups = shape["num_attention_heads"], shape["num_query_groups"]
        size, bias = shape["hidden_size"] // number, shape.get("add_qkv_bias", False)
        queries = [self.heads(row, number, size, bias, True) for row in rows]
        keys = [[self.weights(size) for _ in range(groups)] for _ in range(keys_before)]
        values = [[self.weights(size) for _ in range(groups)] for _ in range(keys_before)]
        keys += [self.heads(row, groups, size, bias, True) for row in rows]
        values += [self.heads(row, groups, size, bias, False) for row in rows]
        gates = [self.linear(row, number * size) for row in rows] if shape.get("attention_output_gate") else None
        root = Tally(size).sqrt()
        out = []
        for i, query in enumerate(queries):
            flat = []
            for h, head in enumerate(query):
                group = h * groups // number
                powers = [(dot(head, key[group]) / root).exp() for key in keys]
                sinks = [Tally(0.1).exp()] if shape.get("softmax_type") == "learnable" else []
                total = fold(powers + sinks)
                shares = [power / total for power in powers]
                flat += [dot(shares, [value[group][c] for value in values]) for c in range(size)]
            if gates:
                flat = [y * (ONE / (ONE + (-g).exp())) for y, g in zip(flat, gates[i], strict=True)]
            out.append(self.linear(flat, shape["hidden_size"]))
        return out

    def mlp(self, x, inner, bias=False):
        values = self.linear(x, inner, bias)
        if self.shape.get("gated_linear_unit"):
            gates = self.linear(x, inner, bias)
            values = [v * (g / (ONE + (-g).exp())) for v, g in zip(values, gates, strict=True)]
        else:
            # x / 2 (1 + erf(x / sqrt 2)), the error function as one exponentiation.
            values = [(y * ONE) * (ONE + (y * ONE).exp()) for y in values]
        return self.linear(values, self.shape["hidden_size"], bias)

    def channel(self, x):
        shape = self.shape
        if "num_moe_experts" not in shape:
            return self.mlp(x, shape["ffn_hidden_size"])
        powers = [score.exp() for score in self.linear(x, shape["num_moe_experts"])]
        total = fold(powers)
        shares = [power / total for power in powers][: shape["moe_router_topk"]]
        outs = [[y * share for y in self.mlp(x, shape["moe_ffn_hidden_size"])] for share in shares]
        mixed = [fold(list(column)) for column in zip(*outs, strict=True)]
        if shape.get("moe_shared_expert_intermediate_size"):
            mixed = [a + b for a, b in zip(mixed, self.mlp(x, shape["moe_shared_expert_intermediate_size"]), strict=True)]
        return mixed

    def run(self, queries, keys):
        rows = [self.weights(self.shape["hidden_size"]) for _ in range(queries)]
        for _ in range(self.shape["num_layers"]):
            mixed = self.attention([self.norm(row) for row in rows], keys - queries)
            rows = [[a + b for a, b in zip(row, more, strict=True)] for row, more in zip(rows, mixed, strict=True)]
            mixed = [self.channel(self.norm(row)) for row in rows]
            rows = [[a + b for a, b in zip(row, more, strict=True)] for row, more in zip(rows, mixed, strict=True)]
        for row in rows:
            self.linear(self.norm(row), self.shape["vocab_size"])


def counted(shape, queries, keys):
    Tally.counts.clear()
    Model(shape, Random(0)).run(queries, keys)
    found = Tally.counts
    return (found["+"], found["*"], found["/"], 10 * found["exp"], 10 * found["sqrt"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_query_groups": 3, "add_qkv_bias": False},
        {"qk_layernorm": True},
        {"softmax_type": "learnable"},
        {"attention_output_gate": True, "add_qkv_bias": False},
        {"rotary_percent": 0.5},
        {"gated_linear_unit": False, "normalization": "LayerNorm"},
        {"num_moe_experts": 5, "moe_router_topk": 2, "moe_ffn_hidden_size": 7},
        {"num_moe_experts": 5, "moe_router_topk": 3, "moe_ffn_hidden_size": 7, "moe_shared_expert_intermediate_size": 4},
    ],
    ids=str,
)
def test_scalar_arithmetic(changes):
    """What a model does in scalar arithmetic, operation by operation, is what the ledger says."""
    shape = QWEN_SMALL | changes
    for tokens in (1, 5):
        assert columns(Ledger({"model": shape}).cost([tokens])) == counted(shape, tokens, tokens)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_multiplications_of_matmuls_are_those_of_the_plan(name):
    """For every published model, the ledger's multiplications of matmuls are the plan's multiply-accumulates."""
    config = full_config(MODELS[name]) | {"should_pad_vocab": False}
    images = {"image_patches": [64, 256]} if config.get("vision_config") else {}
    not_matmuls = (Kind.NORM, Kind.LATENT_NORM, Kind.ELEMENTWISE)
    got = Ledger(config).cost([70, 9], keep=lambda term: term.kind not in not_matmuls, **images)
    assert 2 * got.multiplications == compile_plan(config, "executed").flops([70, 9], passes="forward", **images)
    assert all("what runs takes whole chunks" in sentence for sentence in Ledger(config).not_counted)


# ---- what single blocks do beside their matmuls, by the same arithmetic -----------------------------------------------


def some(count):
    return [Tally(0.5) for _ in range(count)]


def sigmoid(y):
    return ONE / (ONE + (-y).exp())


def silu(y):
    return y / (ONE + (-y).exp())


def gelu(y):
    return (y * ONE) * (ONE + (y * ONE).exp())


def softplus(y):
    return (ONE + y.exp()).log()


def unit(x):
    root = dot(x, x).sqrt()
    return [y / root for y in x]


def turned(x):
    return [y * c + z * s for y, z, c, s in zip(x, x, some(len(x)), some(len(x)), strict=True)]


def attend(queries, keys, values, root):
    """One head: every query sees its list of keys."""
    for query, seen in zip(queries, keys, strict=True):
        powers = [(dot(query, key) / root).exp() for key in seen]
        total = fold(powers)
        shares = [power / total for power in powers]
        for c in range(len(values[0])):
            dot(shares, [value[c] for value in values[: len(seen)]])


def decay(a):
    return (-(a.exp() * softplus(a + ONE))).exp()


def one_gated_delta_token(keys, key_size, heads, size):
    [silu(y) for y in some(2 * keys * key_size + heads * size)]
    [unit(some(key_size)) for _ in range(2 * keys)]
    [(decay(ONE), sigmoid(ONE)) for _ in range(heads)]
    [y * silu(gate) for y, gate in zip(some(heads * size), some(heads * size), strict=True)]


def one_kimi_token(heads, size):
    [silu(y) for y in some(3 * heads * size)]
    [unit(some(size)) for _ in range(2 * heads)]
    [decay(ONE) for _ in range(heads * size)]
    [sigmoid(ONE) for _ in range(heads)]
    [y * sigmoid(gate) for y, gate in zip(some(heads * size), some(heads * size), strict=True)]


def one_mamba_token(inner, state, groups, heads):
    [silu(y) for y in some(inner + 2 * groups * state)]
    [(softplus(ONE + ONE) * ONE).exp() for _ in range(heads)]
    [(y + x * ONE) * silu(ONE) for y, x in zip(some(inner), some(inner), strict=True)]


def one_mixing(size, copies):
    for _ in range(size):
        streams = some(copies)
        for _ in range(2):
            dot(streams, some(copies))
            streams = [dot(streams, some(copies)) for _ in range(copies)]
            streams = [stream + ONE * ONE for stream in streams]


def images(patches, heads, size, inner, gated, rope):
    rows = [some(size) for _ in range(patches)]
    root = Tally(size // heads).sqrt()
    for _ in range(heads):
        head = [some(size // heads) for _ in rows]
        attend(head, [head] * patches, head, root)
    for row in rows:
        if rope:
            turned(row), turned(row)
        [y + z + w for y, z, w in zip(row, row, row, strict=True)]
        [silu(y) * ONE if gated else gelu(y) for y in some(inner)]


def latent(tokens, heads, key_size, rope_size, value_size):
    root = Tally(key_size).sqrt()
    for _ in range(heads):
        queries = [some(key_size) for _ in range(tokens)]
        attend(queries, [queries[: i + 1] for i in range(tokens)], [some(value_size) for _ in range(tokens)], root)
        [turned(some(rope_size)) for _ in range(tokens)]
    [turned(some(rope_size)) for _ in range(tokens)]


def gelu_tanh(x):
    y = ONE * (x + ONE * x * x * x)
    tanh = ONE + -(ONE / ((ONE * y).exp() + ONE))
    return (x * ONE) * (ONE + tanh)


def audio(frames, size, pooling):
    positions = (frames + 1) // 2
    [gelu(y) for _ in range(frames) for y in some(size)]
    [gelu(y) + ONE for _ in range(positions) for y in some(size)]
    [fold(some(pooling)) / ONE for _ in range(positions // pooling * size)]


def per_layer(layers, size, hidden):
    [(y + z) * ONE for y, z in zip(some(layers * size), some(layers * size), strict=True)]
    [gelu_tanh(y) * ONE for y in some(size)]
    [y + ONE for y in some(hidden)]


def beside_matmuls(terms, items):
    """All but the linear layers, norms and scans of a block, over one sequence or image."""
    total = Operations()
    for term in terms:
        if term.kind in (Kind.ELEMENTWISE, Kind.CORE):
            factor, rows = EXACT.statistic(term.rows) if isinstance(term.rows, Context) else (1, term.rows)
            total += factor * rows.of(items) * COUNTED[term.kind](term)
    return total


CAUSAL = Context("causal")
MLA = {"hidden_size": 7, "q_lora_rank": 3, "qk_head_dim": 5, "qk_pos_emb_head_dim": 4, "v_head_dim": 6, "context": CAUSAL}


@pytest.mark.parametrize(
    ("terms", "items", "arithmetic"),
    [
        (
            gated_delta_net(
                hidden_size=7, key_head_dim=3, num_key_heads=5, value_head_dim=4, num_value_heads=6, conv_kernel_dim=4
            ),
            1,
            lambda: one_gated_delta_token(5, 3, 6, 4),
        ),
        (kimi_delta_attention(hidden_size=7, num_heads=3, head_dim=5, conv_kernel_size=4), 1, lambda: one_kimi_token(3, 5)),
        (
            mamba(hidden_size=7, inner_size=12, state_dim=5, num_groups=3, num_heads=4, conv_kernel_dim=4),
            1,
            lambda: one_mamba_token(12, 5, 3, 4),
        ),
        (hyper_connections(hidden_size=7, multiplicity=4), 1, lambda: one_mixing(7, 4)),
        (
            latent_attention(num_attention_heads=3, kv_lora_rank=8, **MLA),
            5,
            lambda: latent(5, 3, 5 + 4, 4, 6),
        ),
        (
            latent_attention(num_attention_heads=3, kv_lora_rank=8, absorbed=True, **MLA),
            5,
            lambda: latent(5, 3, 8 + 4, 4, 8),
        ),
        (
            vision_tower.vision_layer(hidden_size=12, intermediate_size=7, gated=False, heads=3),
            5,
            lambda: images(5, 3, 12, 7, gated=False, rope=False),
        ),
        (
            vision_tower.vision_layer(
                hidden_size=12,
                intermediate_size=7,
                gated=True,
                activation=ACTIVATIONS["silu"],
                heads=3,
                rope=True,
                class_token=True,
            ),
            4,
            lambda: images(5, 3, 12, 7, gated=True, rope=True),
        ),
        (
            vision_projector.merger(hidden_size=3, spatial_merge_size=2, out_hidden_size=5, norm_size=3, norm_bias=True),
            8,
            lambda: [gelu(y) for y in some(2 * 12)],
        ),
        (
            vision_projector.pooled_linear(hidden_size=3, spatial_merge_size=2, out_hidden_size=5),
            8,
            lambda: [fold(some(4)) / ONE for _ in range(2 * 3)],
        ),
        (vision_projector.mlp_projector(hidden_size=3, out_hidden_size=5), 8, lambda: [gelu(y) for y in some(8 * 5)]),
        (
            vision_projector.pixel_shuffle(
                intermediate_size=12,
                spatial_merge_size=2,
                projector_input_dim=5,
                projector_output_dim=7,
                vision_output_dim=7,
                out_hidden_size=3,
            ),
            8,
            lambda: [gelu(y) for y in some(2 * (5 + 7))],
        ),
        (
            [
                *audio_encoder.frontend(num_mel_bins=3, hidden_size=5, max_positions=9),
                *audio_encoder.audio_projector(hidden_size=5, out_hidden_size=4, pooling=2),
            ],
            7,
            lambda: audio(7, 5, 2),
        ),
        (
            [
                *per_layer_embeddings.per_layer_input(hidden_size=7, num_layers=2, per_layer_size=3, vocab_size=9),
                *per_layer_embeddings.per_layer_projection(hidden_size=7, per_layer_size=3),
            ],
            1,
            lambda: per_layer(2, 3, 7),
        ),
    ],
    ids=[
        "gated delta net",
        "kimi delta attention",
        "mamba",
        "hyper connections",
        "latent",
        "absorbed",
        "vision",
        "class token",
        "merger",
        "pooled",
        "projector",
        "pixel shuffle",
        "audio",
        "per-layer embeddings",
    ],
)
def test_scalar_arithmetic_of_single_blocks(terms, items, arithmetic):
    Tally.counts.clear()
    arithmetic()
    counts = Tally.counts
    assert beside_matmuls(terms, items) == Operations(counts["+"], counts["*"], counts["/"], counts["exp"], counts["sqrt"])


def test_every_kind_of_term_is_counted():
    assert set(COUNTED) == set(Kind)


def test_lora_of_any_model():
    config = {"model": QWEN_SMALL, "peft": {"kind": "lora", "dim": 2, "target_modules": ["linear_fc2"]}}
    with_lora, without = Ledger(config).cost([6]), Ledger({"model": QWEN_SMALL}).cost([6])
    rows, k, n = 6 * QWEN_SMALL["num_layers"], 10, 12
    assert with_lora.lora == with_lora.total - without.total
    assert with_lora.lora == rows * ((2 * k - 1) * 2 + (2 * 2 - 1) * n + 2 * n)


def test_an_unknown_activation_is_reported():
    assert ACTIVATIONS.keys() >= {"silu", "gelu", "gelu_tanh", "relu", "squared_relu", "quick_gelu"}
    assert Ledger(QWEN_SMALL | {"activation_func": "mish"}).not_counted == (
        "activation_func='mish': the cost of this activation is unknown and not counted",
    )
