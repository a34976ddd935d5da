"""One training step and one evaluation step: megatron-core's schedule around our forward step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_attr_wrapped_model, get_batch_on_this_cp_rank, get_model_config
from torch import Tensor

from bridge.data.batching import MicroBatch
from bridge.training.engine.attention import positions
from bridge.training.engine.vision_limits import check_places

if TYPE_CHECKING:
    from bridge.config.schema import Config
    from bridge.training.state import Groups

LOSS = "lm loss"
"""Name of the loss in ``loss_dict``, as in Megatron-LM."""

DataIterator = Iterator[MicroBatch] | Sequence[Iterator[MicroBatch]]


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """Move a micro-batch; copies from pinned memory do not wait."""
    return {key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for key, value in batch.items()}


def segment_bounds(batch: MicroBatch) -> Tensor:
    """Where the segments of a packed batch begin and end, padding included: int32 [segments + 1]."""
    return batch["cu_seqlens_padded" if "cu_seqlens_padded" in batch else "cu_seqlens"]


def packed_params(batch: MicroBatch, device: torch.device) -> PackedSeqParams | None:
    """megatron-core's description of a packed batch, or None for other batches.

    Padding counts as the end of its segment: it is on the right, so causal attention never attends to it.
    ``device``: Transformer Engine reads the bounds on the GPU, the local attention on the host.
    """
    if "cu_seqlens" not in batch:
        return None
    bounds = segment_bounds(batch).to(device, non_blocking=True)
    longest = int(batch["max_seqlen"])
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


def on_this_context_rank(batch: MicroBatch) -> MicroBatch:
    """The part of every sequence that this context-parallel rank works on: two chunks of each segment."""
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return batch
    rank = parallel_state.get_context_parallel_rank()
    rows = {key: batch[key] for key in ("tokens", "labels", "loss_mask", "padding_mask", "position_ids")}
    if "cu_seqlens" not in batch:
        return {**batch, **get_batch_on_this_cp_rank(rows)}
    bounds = segment_bounds(batch).tolist()
    index = torch.cat(
        [start + positions((end - start) // size, size, rank, torch.device("cpu")) for start, end in pairwise(bounds)]
    )
    return {**batch, **{key: value[:, index] for key, value in rows.items()}}


def padding_mask_for(model: torch.nn.Module, mask: Tensor) -> Tensor | None:
    """True on padding, [b, s]: the router's balance must not depend on it. None for models without experts."""
    config = get_model_config(model)
    if config.num_moe_experts is None:
        return None
    if config.sequence_parallel and not get_attr_wrapped_model(model, "pre_process"):
        # megatron-core cuts the mask along the sequence on the first stage only.
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        return mask.chunk(ranks, dim=1)[parallel_state.get_tensor_model_parallel_rank()].contiguous()
    return mask


def images_for(model: torch.nn.Module, host: MicroBatch, batch: MicroBatch) -> dict[str, Tensor]:
    """The images of a micro-batch, for the first stage of a model with a tower; the grids stay on the host, which reads them."""
    if "pixel_values" not in host or not get_attr_wrapped_model(model, "pre_process"):
        return {}
    grids = host["image_grid_thw"]
    token, vision = (get_attr_wrapped_model(model, name) for name in ("image_token_id", "vision"))
    check_places(host["tokens"], grids, token, vision)
    return {"pixel_values": batch["pixel_values"], "image_grid_thw": grids}


def loss_function(loss_mask: Tensor, output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of the token losses, number of learned tokens, and both for the report.

    megatron-core divides gradients by the number of tokens of the whole global batch. The reported loss is a copy: the
    schedule divides the first value in place.
    """
    losses = output.float() * loss_mask
    total = losses.sum()
    tokens = loss_mask.sum()
    return total, tokens.to(torch.int), {LOSS: torch.stack([total.detach().clone(), tokens.detach()])}


def forward_step(device: torch.device, data_iterator: Iterator[MicroBatch], model: torch.nn.Module) -> Any:
    """megatron-core's forward step: the next micro-batch through one chunk of the model."""
    host = on_this_context_rank(next(data_iterator))
    engine = get_model_config(model).transformer_impl == "transformer_engine"
    packed = packed_params(host, device if engine else torch.device("cpu"))
    batch = to_device(host, device)
    output = model(
        batch["tokens"],
        batch["position_ids"],
        None,  # causal attention needs no mask: padding is on the right
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
        packed_seq_params=packed,
        padding_mask=padding_mask_for(model, batch["padding_mask"]),
        **images_for(model, host, batch),
    )
    return output, partial(loss_function, batch["loss_mask"])


@dataclass(frozen=True)
class StepSums:
    """A step's sums over all ranks, still on the device: ``values`` = (loss sum, tokens, ranks that want to stop).

    On a GPU they are copied to the host asynchronously, so that reading the copy later waits for this step only, not for all
    work queued since.
    """

    values: Tensor
    copy: Tensor | None = None
    copied: torch.cuda.Event | None = None

    @classmethod
    def of(cls, values: Tensor) -> StepSums:
        """The sums, with a copy on its way to the host if they are on a GPU."""
        if not values.is_cuda:
            return cls(values)
        copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        copy.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return cls(values, copy, copied)

    @property
    def loss(self) -> Tensor:
        """Mean loss per token of the global batch (a scalar on the device)."""
        return self.values[0] / self.values[1].clamp(min=1)

    def loss_dict(self) -> dict[str, Tensor]:
        """The losses as callbacks receive them."""
        return {LOSS: self.loss}

    def stop(self) -> bool:
        """Whether any rank asked to stop; waits for the device to reach the end of this step."""
        if self.copied is not None:
            self.copied.synchronize()
        values = self.values if self.copy is None else self.copy
        return bool(values[2].item() > 0)


def add_over_ranks(reports: Sequence[dict[str, Tensor]], groups: Groups, device: torch.device, stop: bool = False) -> StepSums:
    """Sum the losses of all micro-batches, replicas and sequence parts; every rank gets the same totals.

    One all-reduce of three numbers per step. The wish to stop (a signal on any rank) rides along, so that all ranks
    stop after the same step without its own collective.
    """
    values = torch.zeros(3, dtype=torch.float64, device=device)
    if reports and groups.tensor_rank == 0:  # the last stage has reports, and its tensor ranks have the same ones
        values[:2] = torch.stack([report[LOSS] for report in reports]).double().sum(dim=0)
    values[2] = float(stop)
    torch.distributed.all_reduce(values)
    return StepSums.of(values)


class Stepper:
    """Runs steps of one model with one optimizer."""

    def __init__(
        self, cfg: Config, model: list[Any], optimizer: Any, scheduler: Any, groups: Groups, device: torch.device
    ) -> None:
        self.cfg = cfg
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.groups = groups
        self.device = device
        self._schedule = get_forward_backward_func()
        _connect(get_model_config(model[0]), model, optimizer)

    def train(self, data: DataIterator, num_microbatches: int, stop: bool = False) -> tuple[StepSums, bool, float | None]:
        """One optimizer step over ``num_microbatches``; returns (totals, whether the weights changed, gradient norm)."""
        for chunk in self.model:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports = self._run(data, num_microbatches, forward_only=False)
        updated, grad_norm, _ = self.optimizer.step()
        if updated:
            self.scheduler.step(increment=1)
        totals = add_over_ranks(reports, self.groups, self.device, stop)
        return totals, bool(updated), None if grad_norm is None else float(grad_norm)

    @torch.no_grad()
    def evaluate(self, data: DataIterator, num_microbatches: int) -> StepSums:
        """Run only the forward passes of one global batch. The model must be in evaluation mode."""
        return add_over_ranks(self._run(data, num_microbatches, forward_only=True), self.groups, self.device)

    def _run(self, data: DataIterator, num_microbatches: int, *, forward_only: bool) -> list[dict[str, Tensor]]:
        return self._schedule(
            forward_step_func=partial(forward_step, self.device),
            data_iterator=data,
            model=self.model,
            num_microbatches=num_microbatches,
            seq_length=self.cfg.model.seq_length,
            micro_batch_size=self.cfg.train.micro_batch_size,
            forward_only=forward_only,
        )


def _connect(config: Any, model: list[Any], optimizer: Any) -> None:
    """Tell megatron-core's schedules when to reduce gradients, gather parameters and scale the loss."""

    def per_chunk(values: list[Any]) -> Any:
        return values if len(values) > 1 else values[0]

    ddp = model[0].ddp_config
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    if ddp.overlap_grad_reduce:
        config.no_sync_func = per_chunk([chunk.no_sync for chunk in model])
    if ddp.overlap_param_gather:
        config.param_sync_func = per_chunk([chunk.start_param_sync for chunk in model])
