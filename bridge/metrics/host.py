"""What the callback knows about a training loop: an adapter creates a ``Host``, and nothing else queries the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bridge.metrics.place import Place
from bridge.metrics.trackers import Trackers, attached

#: Steps between log points in a loop that does not set them.
LOG_INTERVAL = 10


@dataclass(kw_only=True)
class Host:
    """A training loop, as the callback sees it.

    Attributes:
        config: describes the model, see :func:`bridge.flops.compile_plan`; None if it cannot be priced.
        step: returns the loop's completed optimizer steps; called when a step begins.
        log_interval: steps between log points; None if the loop requests each row with ``ThroughputCallback.report``.
        trackers: where rows go; they belong to the loop and are not closed here.
        number_format: format of the matmuls that are not quantized; None if the configuration says it.
        device: where the model computes; by default where numbers are summed, the GPU if there is one.
        model: the model's chunks on this rank; None if it is not available on every rank.
        place: the place of this process; by default that of :func:`bridge.metrics.place.find_place`.
        hardware: has the options ``peak_flops`` and ``device_name``, if set.
        train: has the options ``train_iters`` and ``global_batch_size``, if set.
        fused_output_layer: whether the output layer projects some positions only (:mod:`bridge.flops.projected`); each batch
            then has their number as ``projected_tokens``.
    """

    config: Any
    step: Callable[[], int] = lambda: 0
    log_interval: int | None = LOG_INTERVAL
    trackers: Trackers = field(default_factory=Trackers)
    number_format: str | None = None
    device: Any = None
    model: Sequence[Any] | None = None
    place: Place | None = None
    hardware: Any = None
    train: Any = None
    fused_output_layer: bool = False


def host_of(state: Any, model: Sequence[Any] | None) -> Host:
    """The host for ``context.state``: a ``Host``, our loop's state, or one like Megatron-Bridge's.

    Args:
        state: ``cfg``, ``train_state.step``, and perhaps ``trackers``, ``wandb_logger``, ``number_format``.
        model: the chunks on this rank.
    """
    if isinstance(state, Host):
        return state
    cfg, progress = state.cfg, state.train_state
    trackers, device = getattr(state, "trackers", None), getattr(state, "device", None)
    return Host(
        config=cfg,
        step=lambda: progress.step,
        log_interval=getattr(getattr(cfg, "logger", None), "log_interval", None) or LOG_INTERVAL,
        trackers=trackers if isinstance(trackers, Trackers) else Trackers(attached(getattr(state, "wandb_logger", None))),
        number_format=getattr(state, "number_format", None),
        device=device if isinstance(device, torch.device) else None,
        model=model,
        hardware=getattr(cfg, "hardware", None),
        train=getattr(cfg, "train", None),
    )
