"""Build megatron-core's GPTModel for the cases of some shapes (arguments: their numbers), count, print one JSON object.

A process of its own: megatron-core's groups, and the redirect from CUDA to the CPU, are global.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import torch

from bridge.training.engine.initialize import prepare_libraries

prepare_libraries()

import torch.nn.functional as F  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import (  # noqa: E402
    get_gpt_decoder_block_spec,
    get_gpt_decoder_layer_specs,
    get_gpt_mtp_block_spec,
)
from megatron.core.models.gpt.heterogeneous.heterogeneous_layer_specs import get_gpt_heterogeneous_layer_spec  # noqa: E402
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402
from megatron.core.transformer.heterogeneous.heterogeneous_config import HeterogeneousTransformerConfig  # noqa: E402
from megatron.core.transformer.module import MegatronModule  # noqa: E402
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper  # noqa: E402
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig  # noqa: E402

from bridge.config import Config, ModelConfig  # noqa: E402
from bridge.training.engine.model import build_model  # noqa: E402
from oracle.counter import count  # noqa: E402
from oracle.megatron_cases import Case, cases, trained_cases  # noqa: E402

#: Options of ours that GPTModel takes, and not its configuration.
_OF_THE_MODEL = ("vocab_size", "share_embeddings_and_output_weights", "position_embedding_type", "max_position_embeddings")


class PlainAttention(MegatronModule):
    """softmax(q k^T) v and nothing else; megatron-core's own cannot have values narrower than keys (MLA)."""

    def __init__(self, config: TransformerConfig, **_: Any) -> None:
        super().__init__(config=config)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))  # [b, heads, s, dim]
        scores = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]), dim=-1)
        return (scores @ value).permute(2, 0, 1, 3).flatten(2)


class Adapted(torch.nn.Module):
    """A linear layer and a low-rank one beside it, both of megatron-core."""

    def __init__(self, base: torch.nn.Module, rank: int, config: TransformerConfig) -> None:
        super().__init__()
        options = {"config": config, "init_method": config.init_method, "bias": False, "gather_output": False}
        rows, columns = base.weight.shape
        self.base = base
        self.linear_in = ColumnParallelLinear(columns, rank, **options)
        self.linear_out = ColumnParallelLinear(rank, rows, **options)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        output, bias = self.base(x, *args, **kwargs)
        return output + self.linear_out(self.linear_in(x)[0])[0], bias


def build(case: Case) -> GPTModel:
    """The model of a case, with the parts frozen that the case freezes."""
    options = {name: value for name, value in case.model.items() if name not in _OF_THE_MODEL}
    latent, blocks = bool(options.pop("multi_latent_attention", False)), options.pop("block_configs", None)
    kind = MLATransformerConfig if latent else HeterogeneousTransformerConfig if blocks else TransformerConfig
    if blocks:
        options["heterogeneous_layers_config_encoded_json"] = json.dumps({"block_configs": blocks})
    if latent:
        options |= {"rope_type": "rope", "multi_latent_attention": True}
    config = kind(
        **options,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        # A balancing loss has no matmul, but a tracker that is global and sized by the first model.
        moe_router_load_balancing_type="none",
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
    )
    if blocks:
        spec = get_gpt_heterogeneous_layer_spec(config, use_te=False)
    else:
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization=config.normalization)
    depths = None
    if config.mtp_num_layers:
        layers = get_gpt_decoder_layer_specs(config, use_transformer_engine=False, normalization=config.normalization)
        depths = get_gpt_mtp_block_spec(config, layers[-1], use_transformer_engine=False)
        _attend_plainly(layers[-1], latent)
    for layer in spec.layer_specs:
        _attend_plainly(layer, latent)
    model = GPTModel(
        config=config,
        transformer_layer_spec=spec,
        mtp_block_spec=depths,
        vocab_size=case.model["vocab_size"],
        max_sequence_length=case.model.get("max_position_embeddings", 64),
        position_embedding_type=case.model.get("position_embedding_type", "rope"),
        share_embeddings_and_output_weights=case.model["share_embeddings_and_output_weights"],
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(case.trains(path_of(name)))
    for name, module in list(model.named_modules()):
        if isinstance(module, (ColumnParallelLinear, RowParallelLinear)) and case.adapted(name):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Adapted(module, case.lora, config))
    return model


def build_as_trained(case: Case) -> torch.nn.Module:
    """The model as ``bridge train`` builds it: with its own norm and core attention."""
    model = ModelConfig(**case.model, seq_length=64, make_vocab_size_divisible_by=1)
    (chunk,) = build_model(Config(model=model), torch.device("cpu"))
    return chunk.module


def _attend_plainly(layer: Any, latent: bool) -> None:
    if latent:
        layer.submodules.self_attention.submodules.core_attention = PlainAttention


def path_of(parameter: str) -> str:
    """The module that owns a parameter; the experts of a layer are one module."""
    return re.sub(r"\.local_experts\.\d+|\.(weight|bias)$", "", parameter)


def measure(case: Case, model: torch.nn.Module) -> dict[str, int]:
    """What a case counts, and its parameters."""
    MTPLossLoggingHelper.tracker.clear()  # it is global, and sized by the first model
    tokens = torch.zeros(case.batch_size, case.length, dtype=torch.long)
    positions = torch.arange(case.length)[None].expand_as(tokens)
    hidden = torch.ones(case.length, case.length, dtype=torch.bool).triu(1)[None, None].expand(case.batch_size, 1, -1, -1)

    def loss() -> torch.Tensor:
        return model(tokens, positions, hidden, labels=tokens).sum()

    trains = any(parameter.requires_grad for parameter in model.parameters())
    return {
        "forward": count(loss),
        "training": count(lambda: loss().backward()) if trains else -1,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    }


def main() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    model_parallel_cuda_manual_seed(1)
    results: dict[str, Any] = {}
    shapes = [int(shape) for shape in sys.argv[1:]]
    for case in cases(shapes):
        results[case.name] = _attempt(case, build)
    for case in trained_cases() if 0 in shapes else ():
        results[f"trained-{case.name}"] = _attempt(case, build_as_trained)
    print(json.dumps(results))


def _attempt(case: Case, builder: Callable[[Case], torch.nn.Module]) -> dict[str, Any]:
    try:
        return measure(case, builder(case))
    except Exception as error:  # the test of this case reports it, the others go on
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
