"""Adapters on real models: what ``test_peft.py`` looks at, as one JSON object.

Started by torchrun on two ranks: first each with a whole model, then both with one model, split.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from bridge.training.engine.initialize import leave_groups, prepare_libraries

prepare_libraries()

from megatron.core import parallel_state  # noqa: E402
from megatron.core.distributed.finalize_model_grads import _allreduce_non_tensor_model_parallel_grads  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402

from bridge.config import Config, ModelConfig, ParallelConfig, PeftConfig  # noqa: E402
from bridge.training.engine.model import build_model  # noqa: E402
from bridge.training.peft import is_adapter, merge_adapters  # noqa: E402

DENSE: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "gated_linear_unit": True,
    "vocab_size": 64,
    "seq_length": 16,
    "make_vocab_size_divisible_by": 1,
}
EXPERTS = {"num_moe_experts": 2, "moe_router_topk": 2, "moe_ffn_hidden_size": 24, "moe_router_load_balancing_type": "none"}
LATENT = {
    "multi_latent_attention": True, "qk_layernorm": True, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 4, "v_head_dim": 8, "num_query_groups": None,
}  # fmt: skip
MODELS = {"dense": DENSE, "moe": DENSE | EXPERTS, "mla": DENSE | LATENT}
FUSED = {"dense": ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "output_layer"],
         "moe": ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"],
         "mla": ["linear_q_*_proj", "linear_kv_*_proj", "linear_proj", "linear_fc1"]}  # fmt: skip
SPLIT = ["linear_q", "linear_v", "linear_fc1_up"]


def built(model: str, tensor: int, sequence: bool = False, **peft: Any) -> Any:
    torch.manual_seed(1)
    model_parallel_cuda_manual_seed(1)
    parallel = ParallelConfig(tensor_model_parallel_size=tensor, sequence_parallel=sequence)
    cfg = Config(model=ModelConfig(**MODELS[model], tensor_model_parallel_size=tensor), parallel=parallel)
    cfg.peft = PeftConfig(dim=3, **peft) if peft else None
    (chunk,) = build_model(cfg, torch.device("cpu"))
    return chunk


def loss(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 64, (2, 16), generator=generator)
    positions = torch.arange(16)[None].expand_as(tokens)
    return model(tokens, positions, None, labels=tokens).float().mean()


def adapters(model: Any) -> list[str]:
    """Names of the parameters that belong to adapters."""
    return [name for name, _ in model.named_parameters() if is_adapter(name)]


def stir(model: Any) -> None:
    """Adapters that do something."""
    for name, parameter in model.named_parameters():
        if name.endswith("linear_out.weight"):
            values = torch.sin(torch.arange(parameter.numel()) * 1.7).view_as(parameter) * 0.05
            parameter.data.copy_(values)
        if name.endswith("magnitude"):
            parameter.data.mul_(1.1)


def facts(model: str, tensor: int, sequence: bool, **peft: Any) -> dict[str, Any]:
    """Loss before and after, what has a gradient, the gradient against differences of the loss, and merging."""
    found: dict[str, Any] = {"plain": loss(built(model, tensor, sequence)).item()}
    adapted = built(model, tensor, sequence, **peft)
    found["start"] = loss(adapted).item()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    found["only_adapters"] = trained == set(adapters(adapted))
    stir(adapted)
    found["stirred"] = loss(adapted).item()
    loss(adapted).backward()
    _allreduce_non_tensor_model_parallel_grads([adapted], adapted.config)
    found["slope"], found["difference"] = slope(adapted)
    merge_adapters(adapted)
    found["merged"], found["left"] = loss(adapted).item(), adapters(adapted)
    return found


def slope(model: Any, step: float = 1e-3) -> tuple[float, float]:
    """The derivative of the loss along one direction of all adapters: from the gradients, and from two losses."""
    group, moves, derivative = parallel_state.get_tensor_model_parallel_group(), [], torch.zeros(())
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if not is_adapter(name):
            continue
        split = getattr(parameter, "tensor_model_parallel", False)
        phase = number + split * group.rank()
        direction = torch.cos(torch.arange(parameter.numel()) * 0.7 + phase).view_as(parameter)
        moves.append((parameter, direction))
        # What is whole on every rank moves once.
        derivative += (parameter.main_grad * direction).sum() / (1 if split else group.size())
    torch.distributed.all_reduce(derivative, group=group)
    ends = []
    for sign in (1, -2):
        for parameter, direction in moves:
            parameter.data.add_(direction, alpha=sign * step)
        ends.append(loss(model).item())
    for parameter, direction in moves:
        parameter.data.add_(direction, alpha=step)
    return derivative.item(), (ends[0] - ends[1]) / (2 * step)


def main() -> None:
    torch.distributed.init_process_group("gloo")
    results: dict[str, Any] = {}
    for tensor in (1, 2):
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor, create_gloo_process_groups=False)
        for model in MODELS:
            for sequence in (False, True)[:tensor]:
                if model == "moe" and tensor == 2 and not sequence:
                    continue  # megatron-core wants sequence parallelism there
                for kind in ("lora", "dora"):
                    for form, targets in {"fused": FUSED[model], "split": SPLIT}.items():
                        if form == "fused" or model == "dense":
                            name = f"{model}-{kind}-{form}-tensor{tensor}{'-sequence' if sequence else ''}"
                            results[name] = facts(model, tensor, sequence, kind=kind, target_modules=targets)
        leave_groups()
    if torch.distributed.get_rank() == 0:
        print(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
