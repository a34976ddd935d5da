"""Fine-tuning: adapters on the linear layers of a built model, and which of its weights train.

LoRA (Hu et al., arXiv:2106.09685) adds ``alpha / dim * B A x`` to a frozen layer's ``W x``; DoRA (Liu et al., arXiv:2402.09353)
also trains the norm of every row of ``W + alpha / dim * B A``.  B starts at zero, so training starts from the unchanged model.

Under tensor parallelism one matrix of an adapter is split as the layer it belongs to and the other one is whole on every rank::

    column-parallel layer   x -> A (whole)                    -> B (its rows, as those of W)
    row-parallel layer      x -> A (its columns, as those of W), summed over the ranks -> B (whole)

Communication between the ranks is only as wide as the rank of the adapter.  Layers keep their class's interface and their
names: an adapter is the submodule ``adapter`` of its layer (``decoder.layers.0.mlp.linear_fc1.adapter.linear_in.weight``).
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.layers import (
    linear_with_grad_accumulation_and_async_allreduce,
    set_tensor_model_parallel_attributes,
)
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor
from torch.nn import Module, Parameter

from bridge.flops import transforms
from bridge.flops.plan import compile_plan
from bridge.flops.reading import peft_of
from bridge.flops.shapes import ConfigError, ModelShape
from bridge.training.trainable import global_names, parameters, plan_path

if TYPE_CHECKING:
    from bridge.config.schema import Config, PeftConfig

# ---- names -----------------------------------------------------------------------------------------------------------


def is_adapter(name: str) -> bool:
    """Whether the name of a parameter or a checkpoint's key belongs to an adapter."""
    return ".adapter." in name


# ---- the modules -----------------------------------------------------------------------------------------------------


class ReplicatedLinear(Module):
    """A linear layer that is replicated on every tensor-parallel rank; it runs megatron-core's kernels."""

    def __init__(self, layer: Module, input_size: int, output_size: int) -> None:
        """``layer``: the layer whose adapter it belongs to."""
        super().__init__()
        self.tp_group = layer.tp_group
        self.weight = _replicated(layer, output_size, input_size)

    def forward(self, x: Tensor, **_: Any) -> tuple[Tensor, None]:
        """x [..., input_size] -> ([..., output_size], no bias)."""
        return linear_with_grad_accumulation_and_async_allreduce(x, self.weight, None, False, False, False), None

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """For megatron-core's checkpoints: not split."""
        return make_sharded_tensors_for_checkpoint(
            {"weight": self.weight},
            prefix,
            {},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class Update(Module):
    """The update of a layer's weight: one adapter or several side by side, and with DoRA the norm of each row.

    Subclasses define how it acts on x, and its matrix.
    """

    magnitude: Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("magnitude", None)

    def add_magnitude(self, layer: Module) -> None:
        """Train the norms of the rows (DoRA)."""
        split = isinstance(layer, ColumnParallelLinear)
        self.magnitude = (_split if split else _replicated)(layer, layer.output_size)

    def forward(self, x: Tensor, gather_output: bool | None = None) -> Tensor:
        """The input of the layer -> what is added to its output."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """The update of this rank's part of the weight, [rows, columns]."""
        raise NotImplementedError


class LowRank(Update):
    """``scale * B A``."""

    def __init__(self, layer: Module, rows: int, *, rank: int, scale: float, dropout: float) -> None:
        """``rows``: rows of B over all tensor-parallel ranks."""
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.splits_input = isinstance(layer, RowParallelLinear)
        # A split input needs different random numbers on each tensor-parallel rank, which the tracker gives; under sequence
        # parallelism the whole decoder uses them already.
        self.forks = self.splits_input and layer.tp_group.size() > 1 and not layer.config.sequence_parallel
        config = copy.copy(layer.config)
        config.perform_initialization = False  # without a draw from the model's random numbers
        options: dict[str, Any] = {
            "config": config,
            "init_method": None,
            "bias": False,
            "skip_bias_add": True,
            "is_expert": layer.is_expert,
            "tp_group": layer.tp_group,
        }
        self.linear_in: Module
        self.linear_out: Module
        if self.splits_input:
            self.linear_in = RowParallelLinear(layer.input_size, rank, input_is_parallel=layer.input_is_parallel, **options)
            self.linear_out = ReplicatedLinear(layer, rank, rows)
            set_tensor_model_parallel_attributes(self.linear_in.weight, True, 1, 1)
        else:
            self.linear_in = ReplicatedLinear(layer, layer.input_size, rank)
            self.linear_out = ColumnParallelLinear(rank, rows, gather_output=layer.gather_output, **options)
            set_tensor_model_parallel_attributes(self.linear_out.weight, True, 0, _stride(layer))

    def draw(self, seed: int) -> None:
        """A as in the reference implementation (uniform, He et al. for fan-in), B zero: the same on every parallel layout."""
        rank, columns = self.linear_in.weight.shape
        width = self.linear_in.input_size if self.splits_input else columns
        bound = 1 / math.sqrt(width)
        values = torch.empty(rank, width).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        if self.splits_input:
            values = values[:, self.linear_in.tp_group.rank() * columns :][:, :columns]
        with torch.no_grad():
            self.linear_in.weight.copy_(values)
            self.linear_out.weight.zero_()

    def forward(self, x: Tensor, gather_output: bool | None = None) -> Tensor:
        if self.dropout and self.training:
            with get_cuda_rng_tracker().fork() if self.forks else nullcontext():
                x = F.dropout(x, self.dropout)
        low, _ = self.linear_in(x)
        options = {} if self.splits_input else {"runtime_gather_output": gather_output}
        return self.linear_out(low, **options)[0] * self.scale

    def matrix(self) -> Tensor:
        return self.scale * (self.linear_out.weight @ self.linear_in.weight)


class Split(Update):
    """One adapter for each part of a fused layer (canonical LoRA), arranged like the rows of the fused weight."""

    def __init__(self, layer: Module, parts: Mapping[str, LowRank | None], widths: Mapping[str, int]) -> None:
        """``parts``: adapters in the fused layer's order, None for a part without; ``widths``: rows of each over all ranks."""
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        ranks = layer.tp_group.size()
        self.widths = {name: width // ranks for name, width in widths.items()}
        # Queries, keys and values alternate group by group; gate and values follow each other.
        self.groups = layer.config.num_query_groups // ranks if "linear_q" in parts else 1

    def forward(self, x: Tensor, gather_output: bool | None = None) -> Tensor:
        return self._arrange(lambda part: part(x, gather_output))

    def matrix(self) -> Tensor:
        return self._arrange(lambda part: part.matrix().T).T

    def _arrange(self, of: Callable[[Any], Tensor]) -> Tensor:
        found = {name: of(part) for name, part in self.named_children()}
        like = next(iter(found.values()))
        pieces = []
        for name, width in self.widths.items():
            piece = found.get(name)
            piece = like.new_zeros(*like.shape[:-1], width) if piece is None else piece
            pieces.append(piece.unflatten(-1, (self.groups, width // self.groups)))
        return torch.cat(pieces, dim=-1).flatten(-2)


class _Adapted(Module):
    """A parallel linear layer with an adapter."""

    adapter: Update
    config: Any
    tp_group: Any
    bias: Tensor | None

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Same arguments and results as the layer without an adapter."""
        output, bias = super().forward(input_, *args, **kwargs)
        gather_output = kwargs.get("runtime_gather_output")
        update = self.adapter(input_, gather_output)
        if self.adapter.magnitude is None:
            return output + update, bias
        weight = kwargs.get("weight")
        scale = self.adapter.magnitude / row_lengths(self, self.weight if weight is None else weight, self.adapter)
        if getattr(self, "gather_output", False) if gather_output is None else gather_output:
            scale = gather_from_tensor_model_parallel_region(scale, group=self.tp_group)
        product = output if bias is not None or self.bias is None else output - self.bias
        # Written so that it is the layer's own output, bit by bit, where the scale is one and the update zero.
        return output + (scale - 1) * product + scale * update, bias

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """For megatron-core's checkpoints: the adapter is split like the layer."""
        found = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        own = {key: value for key, value in found.items() if not key.startswith(f"{prefix}adapter.")}
        return own | self._sharded_adapter(f"{prefix}adapter.", sharded_offsets, metadata)

    def _sharded_adapter(self, prefix: str, sharded_offsets: Any, metadata: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, module in self.adapter.named_modules():
            if hasattr(module, "sharded_state_dict"):
                found |= module.sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata)
        if self.adapter.magnitude is not None:
            axes = {"magnitude": 0} if isinstance(self, ColumnParallelLinear) else {}
            tensors = {"magnitude": self.adapter.magnitude}
            found |= make_sharded_tensors_for_checkpoint(
                tensors, prefix, axes, sharded_offsets, tp_group=self.tp_group, dp_cp_group=metadata["dp_cp_group"]
            )
        if _stride(self) == 2:
            # As megatron-core does with the fused weight: each rank holds a piece of the gate and a piece of the values.
            alone = metadata.get("singleton_local_shards", False)
            for name in ("linear_out.weight", "magnitude"):
                if (key := prefix + name) in found:
                    found[key] = apply_swiglu_sharded_factory(found[key], sharded_offsets, alone)
        return found


class AdaptedColumnParallelLinear(_Adapted, ColumnParallelLinear):
    """A column-parallel layer with an adapter."""


class AdaptedRowParallelLinear(_Adapted, RowParallelLinear):
    """A row-parallel layer with an adapter."""


_ADAPTED: Mapping[type, type] = {
    ColumnParallelLinear: AdaptedColumnParallelLinear,
    RowParallelLinear: AdaptedRowParallelLinear,
}


@torch.no_grad()
def row_lengths(layer: Any, weight: Tensor, update: Update | None = None) -> Tensor:
    """The norm of each of this rank's rows of W + update. It has no gradient: DoRA treats it as a constant (its section 4.3)."""
    whole = weight if update is None else weight + update.matrix()
    squares = whole.float().square().sum(dim=1)
    if isinstance(layer, RowParallelLinear) and layer.tp_group.size() > 1:
        torch.distributed.all_reduce(squares, group=layer.tp_group)
    return squares.sqrt().to(weight.dtype)


def _stride(layer: Any) -> int:
    """2 if a rank holds a piece of the gate and a piece of the values, else 1."""
    return 2 if getattr(layer, "is_gated_fc1", False) else 1


def _parameter(layer: Any, *shape: int) -> Parameter:
    device = "cpu" if layer.config.use_cpu_initialization else torch.cuda.current_device()
    parameter = Parameter(torch.empty(*shape, device=device, dtype=layer.config.params_dtype))
    # Experts have their own data-parallel ranks.
    parameter.allreduce = not (layer.is_expert and layer.expert_parallel)
    return parameter


def _replicated(layer: Any, *shape: int) -> Parameter:
    """A parameter that is whole on every tensor-parallel rank."""
    parameter = _parameter(layer, *shape)
    # Where each rank sees its part of the tokens, or of the experts' sums, gradients are summed.
    partial = layer.tp_group.size() > 1 if layer.is_expert else layer.config.sequence_parallel
    parameter.sequence_parallel = partial
    return parameter


def _split(layer: Any, rows: int) -> Parameter:
    """A parameter with this rank's part of ``rows`` rows."""
    parameter = _parameter(layer, rows // layer.tp_group.size())
    set_tensor_model_parallel_attributes(parameter, True, 0, _stride(layer))
    return parameter


# ---- what a configuration asks for -----------------------------------------------------------------------------------


def check_peft(cfg: Config, transformer_engine: bool) -> None:
    """Raise ConfigError if this model or megatron-core's layers do not support ``cfg.peft``."""
    lora, _, _ = peft_of(cfg)
    if lora is not None and lora.four_bits:
        raise ConfigError("peft.kind=qlora: megatron-core's layers hold no weights in four bits; train with peft.kind=lora")
    terms = compile_plan(cfg).terms
    model = cfg.model
    if model.recompute_granularity == "selective" and "mlp" in (model.recompute_modules or ()) and model.add_bias_linear:
        raise ConfigError(
            f"model.recompute_modules={list(model.recompute_modules or ())}: megatron-core cannot recompute an MLP whose biases "
            "are frozen (model.add_bias_linear with peft). Use model.recompute_granularity=full, or leave mlp out."
        )
    if lora is None:
        return
    if transformer_engine:
        raise ConfigError(
            "peft: only megatron-core's own linear layers can have adapters, not Transformer Engine's. "
            "Use model.transformer_impl=local."
        )
    tensor = cfg.parallel.tensor_model_parallel_size
    expert_tensor = cfg.parallel.expert_tensor_parallel_size or tensor
    if expert_tensor not in (1, tensor) and any(term.component == transforms.ADAPTERS and term.copies > 1 for term in terms):
        raise ConfigError(
            f"parallel.expert_tensor_parallel_size={expert_tensor} must be 1 or parallel.tensor_model_parallel_size={tensor} "
            "where experts have adapters (peft.target_modules): their gradients are summed over those ranks."
        )


def add_adapters(model: Module, peft: PeftConfig | None, *, shape: ModelShape | None = None, seed: int = 0) -> None:
    """Add adapters to the linear layers that ``peft`` names, and require gradients only for what trains.

    Args:
        model: megatron-core's model or a pipeline stage of it, on its device, not yet wrapped for data parallelism.
        peft: what is adapted and what is frozen; a target is a layer's name, its whole path or a wildcard for either.
            With None, only ``shape`` freezes anything.
        shape: the model's shape, for its freezing options (``freeze_language_model``, ...).
        seed: seed of the adapters' weights; the same seed gives the same adapters on every parallel layout.

    Raises:
        ConfigError: The whole model has no layer that a target names, or the layer's class does not support adapters.
    """
    lora, freeze, train = peft_of({"peft": peft})
    place = global_names(model)
    if lora is not None and peft is not None:
        layers = {name: layer for name, layer in model.named_modules() if _is_linear(layer)}
        found = {name: (plan_path(place(name)), tuple(_widths(name, layer))) for name, layer in layers.items()}
        if _is_whole(model):
            lora.check(found.values())
        for name, layer in layers.items():
            if parts := lora.wanted(*found[name]):
                _adapt(layer, name, parts, lora, peft, zlib.crc32(f"{seed} {place(name)}".encode()))
    reset_magnitudes(model)
    trains = transforms.trainable_of(shape or ModelShape(), lora, freeze, train)
    for path, bias, parameter in parameters(model):
        parameter.requires_grad_(trains.biases(path) if bias else trains.weights(path))
    _let_biases_learn(model)
    _let_gradients_reach_recomputation(model)


def reset_magnitudes(model: Module) -> None:
    """Set DoRA's norms to those of the current weights, after the weights below the adapters were loaded."""
    for layer in _adapted_layers(model):
        if layer.adapter.magnitude is not None:
            layer.adapter.magnitude.data.copy_(row_lengths(layer, _weight(model, layer), layer.adapter))


def merge_adapters(model: Module) -> None:
    """Merge every adapter into its weight and remove it, which leaves an ordinary model that computes the same.

    Raises:
        ValueError: An adapter is on an output layer that shares its weight with the embedding; nothing was changed.
    """
    layers = list(_adapted_layers(model))
    if any(layer.weight is None for layer in layers):
        raise ValueError(
            "the adapter of the output layer cannot be merged: its weight is the embedding's, which has no adapter "
            "(share_embeddings_and_output_weights)"
        )
    for layer in layers:
        with torch.no_grad():
            whole, magnitude = layer.weight + layer.adapter.matrix(), layer.adapter.magnitude
            layer.weight.copy_(whole if magnitude is None else (magnitude / row_lengths(layer, whole))[:, None] * whole)
        del layer.adapter
        layer.__class__ = next(plain for plain, adapted in _ADAPTED.items() if isinstance(layer, adapted))


def _adapt(layer: Any, name: str, parts: tuple[str, ...], lora: transforms.Lora, peft: PeftConfig, seed: int) -> None:
    """Add an adapter to a layer: one for the whole layer, or one for each of ``parts``."""
    if type(layer) not in _ADAPTED:
        raise ConfigError(
            f"peft.target_modules names {name}, which is a {type(layer).__name__}: only megatron-core's own linear layers can "
            "have adapters. Use model.transformer_impl=local, or take it out of the targets."
        )
    sizes: dict[str, Any] = {"rank": lora.dim, "scale": peft.alpha / lora.dim, "dropout": peft.dropout}
    leaf, widths = name.rpartition(".")[2], _widths(name, layer)
    layer.is_gated_fc1 = leaf == "linear_fc1" and bool(widths)
    if parts == (leaf,):
        adapter: Update = LowRank(layer, layer.output_size, **sizes)
        adapter.draw(seed)
    else:
        own = {part: LowRank(layer, width, **sizes) if part in parts else None for part, width in widths.items()}
        for number, part in enumerate(own.values()):
            if part is not None:
                part.draw(seed + number)
        adapter = Split(layer, own, widths)
    if lora.dora:
        adapter.add_magnitude(layer)
    layer.adapter = adapter
    layer.__class__ = _ADAPTED[type(layer)]


def _is_linear(layer: Module) -> bool:
    """Whether a module is one of megatron-core's linear layers, its own or Transformer Engine's; the router is not."""
    return type(layer) in _ADAPTED or (hasattr(layer, "in_features") and hasattr(layer, "out_features"))


def _widths(name: str, layer: Any) -> dict[str, int]:
    """The parts of a fused linear layer in the order of its rows: part -> rows over all ranks; {} if it is not fused."""
    if not isinstance(layer, ColumnParallelLinear):
        return {}
    config, leaf = layer.config, name.rpartition(".")[2]
    if leaf == "linear_qkv":
        heads = config.num_attention_heads * (2 if config.attention_output_gate else 1)
        keys = config.num_query_groups * config.kv_channels
        return {"linear_q": heads * config.kv_channels, "linear_k": keys, "linear_v": keys}
    if leaf == "linear_fc1" and config.gated_linear_unit:
        return dict.fromkeys(("linear_fc1_gate", "linear_fc1_up"), layer.output_size // 2)
    return {}


def _adapted_layers(model: Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, _Adapted))


def _weight(model: Module, layer: Any) -> Tensor:
    """A layer's weight; for an output layer without its own weight, the embedding's."""
    if layer.weight is not None:
        return layer.weight
    owner = next(module for module in model.modules() if getattr(module, "output_layer", None) is layer)
    return owner.shared_embedding_or_output_weight()


def _is_whole(model: Any) -> bool:
    return getattr(model, "pre_process", True) and getattr(model, "post_process", True)


def _let_biases_learn(model: Module) -> None:
    """Add trained biases outside of layers with frozen weights: megatron-core's kernel drops the gradient of such a bias."""

    def add(layer: Module, arguments: Any, output: tuple[Tensor, Tensor | None]) -> tuple[Tensor, None]:
        return output[0] + output[1], None

    for layer in model.modules():
        if isinstance(layer, ColumnParallelLinear) and layer.bias is not None and layer.weight is not None:
            if layer.bias.requires_grad and not layer.weight.requires_grad and not layer.skip_bias_add:
                layer.skip_bias_add = True
                layer.register_forward_hook(add)


def _let_gradients_reach_recomputation(model: Any) -> None:
    """Make the embedding's output require a gradient if layers are recomputed.

    What megatron-core recomputes has a backward pass only if one of its inputs needs a gradient. Above a frozen embedding none
    does, and the trained weights inside would not learn.
    """
    embedding, config = getattr(model, "embedding", None), getattr(model, "config", None)
    if embedding is None or not transforms.recomputes_weights(config):
        return

    def ask(module: Module, arguments: Any, output: Tensor) -> Tensor:
        return output if output.requires_grad or not torch.is_grad_enabled() else output.requires_grad_()

    embedding.register_forward_hook(ask)
