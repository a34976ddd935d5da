"""Your own loop: two lines in the loop, or one line before it if the model and the optimizer are torch's.

::

    throughput = Throughput(model, convention="exact")
    for batches in data:
        with throughput.step():                 # one optimizer step
            for batch in batches:
                throughput.count(batch)         # one micro-batch
                ...
    throughput.end()

or, where hooks can see the calls of the model and the steps of the optimizer::

    throughput = Throughput(model, convention="exact").watch(optimizer)
    ...
    throughput.end()
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from bridge.metrics.host import Host
from bridge.metrics.trackers import Tracker, Trackers, attached
from bridge.training.callbacks import CallbackContext, ThroughputCallback

logger = logging.getLogger(__name__)

_NOTHING_YET = CallbackContext(state=None, model=[])


class Throughput:
    """Exact FLOPs, MFU and token rates of a loop of any form.

    Args:
        model: the torch module that is trained, also compiled or wrapped in DDP; None: only ``config`` describes it.
        config: prices the model, see :func:`bridge.flops.compile_plan`; None: it is read from a transformers model.
        number_format: number format of most matmuls, for example ``bf16``; None: that of the model's weights.
        wandb: a W&B run, or the module, to which rows are added; it is not finished here.
        trackers: further destinations for rows. Each rank writes every row to its trackers, and closes none of them.
        options: options of :class:`~bridge.training.callbacks.ThroughputCallback`; ``log_interval`` is 10 steps if unset.
    """

    def __init__(
        self,
        model: Any = None,
        config: Any = None,
        *,
        number_format: str | None = None,
        wandb: Any = None,
        trackers: Sequence[Tracker] = (),
        **options: Any,
    ) -> None:
        self.callback = ThroughputCallback(**options)
        self.steps = 0
        """Completed optimizer steps, including those before a restart."""
        self._model, self._config, self._number_format = model, config, number_format
        self._trackers = Trackers([*trackers, *attached(wandb)])
        self._context: CallbackContext | None = None
        self._inside = False
        self._hooks: list[Any] = []

    @property
    def latest(self) -> Mapping[str, Any]:
        """The newest row; empty before the first."""
        return self.callback.latest

    # ---- a step -----------------------------------------------------------------------------------------------------

    @contextmanager
    def step(self) -> Iterator[None]:
        """One optimizer step, with all of its micro-batches; on every rank."""
        self.enter()
        yield
        self.leave()

    def count(self, batch: Any) -> None:
        """One training micro-batch of this rank, in any form that :mod:`bridge.metrics.batch_lengths` knows."""
        self.callback.count(batch)

    def observe(self, data: Any) -> Any:
        """A loader or an iterator whose batches are counted as they are taken, instead of ``count``."""
        return self.callback.observe(data)

    def watch(self, optimizer: torch.optim.Optimizer) -> Throughput:
        """Count each call of the model in training and each step of its optimizer; replaces ``step`` and ``count``.

        Calls without gradients, or in evaluation mode, are not counted.
        """
        self.see_calls()
        self._hooks.append(optimizer.register_step_post_hook(lambda *_: self.leave()))
        return self

    def see_calls(self) -> None:
        """Count the batches that the model is called with in training; a step begins with the first call."""
        self._hooks.append(self._model.register_forward_pre_hook(self._see, with_kwargs=True))

    @torch.compiler.disable
    def _see(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training and torch.is_grad_enabled():
            self.enter()
            self.count(kwargs or args[0])

    def enter(self) -> None:
        """A step begins, if none has begun."""
        if self._context is None:
            self._context = self._start()
        if not self._inside:
            self.callback.on_train_step_start(self._context)
        self._inside = True

    def leave(self) -> None:
        """The optimizer has stepped."""
        if self._context is not None and self._inside:
            self.steps += 1
            self._inside = False
            self.callback.on_train_step_end(self._context)

    def _start(self) -> CallbackContext:
        host = Host(
            config=self._config if self._config is not None else _read(_unwrapped(self._model)),
            step=lambda: self.steps,
            trackers=self._trackers,
            number_format=self._number_format or _format(self._model),
            model=None if self._model is None else [self._model],
        )
        context = CallbackContext(state=host, model=host.model)  # type: ignore[arg-type]
        self.callback.on_train_start(context)
        return context

    # ---- between steps -----------------------------------------------------------------------------------------------

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """An evaluation, whose time and batches do not count."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def pause(self) -> None:
        """An evaluation begins."""
        self.callback.on_eval_start(self._context or _NOTHING_YET)

    def resume(self) -> None:
        """The evaluation is over."""
        self.callback.on_eval_end(self._context or _NOTHING_YET)

    def end(self) -> None:
        """Write the last row; call it on every rank, before trackers are closed and process groups destroyed."""
        self._finish(self.callback.on_train_end)

    def abandon(self) -> None:
        """The loop fails on this rank, perhaps alone: publish the sums that have arrived, without waiting for other ranks."""
        self._finish(self.callback.abandon)

    def _finish(self, say: Callable[[CallbackContext], None]) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._context is not None:
            say(self._context)
            self._context = None  # only once

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Bring the totals up to the last step; call it on every rank, before ``state_dict`` is read on any of them."""
        if self._context is not None:
            self.callback.on_checkpoint_save(self._context)

    def state_dict(self) -> dict[str, Any]:
        """Steps and totals: plain integers and strings."""
        return {"steps": self.steps, "totals": self.callback.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; call it before the first step."""
        self.steps = int(state["steps"])
        self.callback.load_state_dict(state["totals"])


def _read(model: Any) -> Any:
    """The configuration of a transformers model; None if it cannot be read."""
    from bridge.config.sources.huggingface_model import from_huggingface_model

    try:
        return from_huggingface_model(model)
    except Exception as error:  # any module may be trained
        logger.warning("FLOPs and MFU are not reported, the model cannot be priced: %s; give config=", error)
        return None


def _unwrapped(model: Any) -> Any:
    """The model inside its wrappers: DDP's and the compiler's, in either order."""
    while (inner := getattr(model, "module" if isinstance(model, DistributedDataParallel) else "_orig_mod", None)) is not None:
        model = inner
    return model


def _format(model: Any) -> str | None:
    weight = next(iter(model.parameters()), None) if model is not None else None
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}.get(getattr(weight, "dtype", None))
