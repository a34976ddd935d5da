"""Cases of fine-tuning megatron-core's GPTModel: what is built, adapted, frozen, recomputed. Without torch and megatron-core."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

from oracle.megatron_cases import KINDS, linear_layers


class FineTuning(NamedTuple):
    """One model with adapters or frozen parts, one batch.

    Attributes:
        name: for the test's report.
        model: options of our configuration, by megatron-core's names.
        peft: those of its ``peft`` section.
        batch_size, length: of the batch.
    """

    name: str
    model: dict[str, Any]
    peft: dict[str, Any]
    batch_size: int
    length: int


def _recomputations(model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    modules = [["core_attn"]]
    if "num_moe_experts" in model:
        modules.append(["core_attn", "moe"])
        modules += [["shared_experts"]] if model["moe_shared_expert_intermediate_size"] else []
    elif not model["add_bias_linear"]:  # frozen biases and their recomputation: megatron-core never ends
        modules.append(["mlp"])
    if "kv_lora_rank" in model:
        modules.append(["mla_up_proj"])
    full = {"recompute_granularity": "full"}
    return {
        "": {},
        "-uniform": {**full, "recompute_method": "uniform", "recompute_num_layers": 1},
        "-block": {**full, "recompute_method": "block", "recompute_num_layers": 1},
        **{f"-{'+'.join(m)}": {"recompute_granularity": "selective", "recompute_modules": m} for m in modules},
    }


def _pefts(random: Random, model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Adapters on all layers and on some, fused and split, and what else may train."""
    layers = linear_layers(model)
    some = random.sample(layers, 2)
    found: dict[str, dict[str, Any]] = {
        "lora": {"target_modules": list(layers)},
        "some": {"target_modules": some, "dim": random.randint(1, 5)},
        "dora": {"kind": "dora", "target_modules": [*some, "output_layer"], "dim": random.randint(1, 5)},
        "wildcard": {"target_modules": ["decoder.layers.1.*"], "dim": 3},
        "norms": {"kind": "freeze", "freeze": ["*"], "train": ["*norm"]},
        "tail": {"kind": "freeze", "freeze": ["embedding", "decoder.layers.0"]},
    }
    if "linear_qkv" in layers:
        found["split"] = {"target_modules": ["linear_q", "linear_v"], "dim": 2, "train": ["decoder.layers.1.input_layernorm"]}
    if "num_moe_experts" in model:
        found["experts"] = {"target_modules": ["*.experts.linear_fc1"], "dim": 2}
    if model.get("add_bias_linear") or model.get("add_qkv_bias"):
        found["biases"] = {"kind": "freeze", "freeze": ["*.weight"], "train": []}
    return found


def cases() -> Iterator[FineTuning]:
    """Kinds of models x kinds of adapters; all ways of recomputation for two of each."""
    for kind in ("dense", "biases", "moe_shared_gate", "mla", "mtp_mla_moe"):
        random = Random(f"fine-tuning {kind}")
        model = KINDS[kind](random)
        size = random.randint(1, 2), random.randint(3, 9)
        for name, peft in _pefts(random, model).items():
            ways = _recomputations(model)
            if name not in ("some", "dora"):
                ways = {"": {}}
            for way, options in ways.items():
                yield FineTuning(f"{kind}-{name}{way}", {**model, **options}, peft, *size)
