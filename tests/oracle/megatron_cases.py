"""Drawn cases for megatron-core's GPTModel: what is built, what trains, what runs. Neither torch nor megatron-core here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from random import Random
from typing import Any


def linear_layers(model: dict[str, Any]) -> tuple[str, ...]:
    """Linear layers of a model that adapters may go on."""
    if "kv_lora_rank" not in model:
        return "linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"
    queries = ("linear_q_down_proj", "linear_q_up_proj") if model["q_lora_rank"] else ("linear_q_proj",)
    return *queries, "linear_kv_down_proj", "linear_kv_up_proj", "linear_proj", "linear_fc1", "linear_fc2"


@dataclass(frozen=True)
class Case:
    """One model, one batch.

    Attributes:
        name: for the test's report.
        model: options of our configuration, by megatron-core's names.
        batch_size, length: of the batch.
        share: part of the modules that trains; 1 for all.
        lora: rank of the adapters; 0 for none.
        targets: layers with an adapter.
    """

    name: str
    model: dict[str, Any]
    batch_size: int
    length: int
    share: float = 1.0
    lora: int = 0
    targets: tuple[str, ...] = field(default=())

    def trains(self, path: str) -> bool:
        """Whether the module with this path trains: the same answer in every process."""
        return Random(f"{self.name} {path}").random() < self.share

    def adapted(self, path: str) -> bool:
        """Whether the module gets an adapter."""
        return any(fnmatchcase(path.rsplit(".", 1)[-1], target) for target in self.targets)


#: From a source of random numbers to the options of a model.
Draw = Callable[[Random], dict[str, Any]]


def _dense(random: Random) -> dict[str, Any]:
    groups = random.randint(1, 3)
    return {
        "num_layers": random.randint(2, 3),
        "hidden_size": 2 * random.randint(6, 24),
        "ffn_hidden_size": random.randint(10, 60),
        "num_attention_heads": groups * random.randint(1, 3),
        "num_query_groups": groups,
        "kv_channels": 2 * random.randint(2, 8),
        "vocab_size": random.randint(50, 200),
        "gated_linear_unit": random.random() < 0.5,
        "qk_layernorm": random.random() < 0.5,
        "share_embeddings_and_output_weights": random.random() < 0.3,
        "normalization": random.choice(["RMSNorm", "LayerNorm"]),
        "add_bias_linear": False,
    }


def _biased(random: Random) -> dict[str, Any]:
    whole = random.random() < 0.5
    return {**_dense(random), "add_bias_linear": whole, "add_qkv_bias": not whole}


def _window(random: Random) -> dict[str, Any]:
    return {**_dense(random), "window_size": (random.randint(1, 6), 0), "window_attn_skip_freq": random.choice([None, 2])}


def _positions(random: Random) -> dict[str, Any]:
    return {**_dense(random), "position_embedding_type": "learned_absolute", "max_position_embeddings": 40}


def _experts(random: Random, base: Draw = _dense) -> dict[str, Any]:
    model = base(random)
    experts = random.randint(2, 5)
    return {
        **model,
        "num_moe_experts": experts,
        "moe_router_topk": random.randint(1, experts),
        "moe_router_pre_softmax": True,
        "moe_ffn_hidden_size": random.randint(5, 30),
        "moe_shared_expert_intermediate_size": random.choice([None, random.randint(5, 30)]),
        "moe_layer_freq": random.choice([1, 2, [int(random.random() < 0.6) for _ in range(model["num_layers"])]]),
        "moe_token_dispatcher_type": random.choice(["alltoall", "allgather"]),
    }


def _gated_shared_experts(random: Random) -> dict[str, Any]:
    return {**_experts(random), "moe_shared_expert_intermediate_size": 12, "moe_shared_expert_gate": True}


def _latent_attention(random: Random) -> dict[str, Any]:
    return {
        **_dense(random),
        "num_query_groups": None,
        "normalization": "RMSNorm",
        "qk_layernorm": True,
        "multi_latent_attention": True,
        "q_lora_rank": random.choice([None, random.randint(3, 20)]),
        "kv_lora_rank": random.randint(3, 20),
        "qk_head_dim": random.randint(3, 12),
        "qk_pos_emb_head_dim": 2 * random.randint(1, 4),
        "v_head_dim": random.randint(3, 12),
    }


def _gated_attention(random: Random) -> dict[str, Any]:
    return {**_dense(random), "attention_output_gate": True}


def _latent_experts(random: Random) -> dict[str, Any]:
    return _experts(random, _latent_attention)


def _heterogeneous(random: Random) -> dict[str, Any]:
    """Layers whose attention and MLP are left out, replaced, or of their own width."""
    model = {**_dense(random), "num_layers": 5}
    heads = model["num_attention_heads"]
    divisors = [size for size in range(1, heads + 1) if heads % size == 0]
    nothing, linear = {"no_op": True}, {"replace_with_linear": True}

    def attention() -> dict[str, Any]:
        own = {"n_heads_in_group": random.choice(divisors)}
        empty = {"n_heads_in_group": None}
        return random.choice([own, own, {**empty, **nothing}, {**empty, **linear}, {"num_query_groups": random.choice(divisors)}])

    def mlp() -> dict[str, Any]:
        empty = {"ffn_mult": None}
        own = {"ffn_mult": random.choice([0.5, 3.28125, 20])}
        return random.choice(
            [own, own, {**empty, **nothing}, {**empty, **linear}, {"ffn_hidden_size": random.randint(5, 60)}, empty]
        )

    return {**model, "block_configs": [{"attention": attention(), "ffn": mlp()} for _ in range(5)]}


def _predicting(base: Draw) -> Draw:
    return lambda random: {**base(random), "mtp_num_layers": random.randint(1, 2)}


KINDS: dict[str, Draw] = {
    "dense": _dense,
    "biases": _biased,
    "window": _window,
    "learned_positions": _positions,
    "output_gate": _gated_attention,
    "heterogeneous": _heterogeneous,
    "moe": _experts,
    "moe_shared_gate": _gated_shared_experts,
    "mla": _latent_attention,
    "mla_moe": _latent_experts,
    "mtp": _predicting(_dense),
    "mtp_moe": _predicting(_experts),
    "mtp_mla_moe": _predicting(_latent_experts),
}


def _recomputations(random: Random, model: dict[str, Any]) -> list[dict[str, Any]]:
    """Options of activation checkpointing that this model can have."""
    full = {"recompute_granularity": "full"}
    modules = ["core_attn", "mlp"]
    if "num_moe_experts" in model:
        modules += ["moe", "shared_experts"] if model["moe_shared_expert_intermediate_size"] else ["moe"]
    if "kv_lora_rank" in model:
        modules.append("mla_up_proj")
    return [
        {**full, "recompute_method": "uniform", "recompute_num_layers": 1},
        {**full, "recompute_method": "block", "recompute_num_layers": random.randint(1, model["num_layers"])},
        *({"recompute_granularity": "selective", "recompute_modules": [module]} for module in modules),
    ]


def cases(shapes: Iterable[int] = range(4)) -> list[Case]:
    """Every kind in several shapes: trained in full, in part, with adapters, and with recomputation."""
    found = []
    for kind, draw in KINDS.items():
        for seed in shapes:
            random = Random(f"{kind} {seed}")
            model = draw(random)
            size = random.randint(1, 3), random.randint(2, 20)
            found.append(Case(f"{kind}-{seed}-full", model, *size))
            for share in (0.07, random.choice([0.2, 0.5, 0.9])):
                found.append(Case(f"{kind}-{seed}-{share}-trained", model, *size, share=share))
            # In its backward pass megatron-core's own windows ask for a GPU.
            if seed == 0 and "window_size" not in model:
                for number, options in enumerate(_recomputations(random, model)):
                    found.append(Case(f"{kind}-{seed}-recompute-{number}", {**model, **options}, *size))
            targets = tuple(random.sample(linear_layers(model), 3))
            found.append(Case(f"{kind}-{seed}-lora", model, *size, share=0.0, lora=random.randint(1, 6), targets=targets))
    return found


def trained_cases() -> list[Case]:
    """What ``bridge train`` builds of these: one shape of every kind, trained in full."""
    return [case for case in cases([0]) if case.name.endswith("-full") and "block_configs" not in case.model]
