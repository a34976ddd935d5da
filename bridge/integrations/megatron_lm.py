"""Megatron-LM: it has no callbacks, so the events are read off the forward step that ``pretrain`` is given.

::

    with ThroughputForwardStep(forward_step, ThroughputCallback("exact", metrics_file="metrics.jsonl")) as observed_step:
        pretrain(train_valid_test_datasets_provider, model_provider, model_type, observed_step)

A step begins with the first micro-batch of an iteration and ends when something else begins: the next iteration, an
evaluation, the end.  Time for a checkpoint therefore counts where no evaluation precedes it, and whether a step was
skipped is not known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Optional

from megatron.core import parallel_state

from bridge.integrations.megatron_bridge import observed
from bridge.metrics.host import Host
from bridge.metrics.trackers import AttachedWandb, Trackers
from bridge.training.callbacks import CallbackContext, ThroughputCallback

try:
    from megatron.training import get_args, get_wandb_writer
except ImportError as error:
    raise ImportError("bridge.integrations.megatron_lm needs Megatron-LM: put its repository on PYTHONPATH") from error


class ThroughputForwardStep:
    """A forward step for ``pretrain`` that counts its micro-batches and reports every ``args.log_interval`` iterations.

    Args:
        forward_step: Megatron-LM's, ``forward_step(data_iterator, model)``.
        throughput: what counts; rows go to Megatron-LM's W&B run and to its ``metrics_file``.

    Leave the ``with`` block on all ranks together: the last row is summed there.
    """

    def __init__(self, forward_step: Callable[..., Any], throughput: ThroughputCallback) -> None:
        functools.update_wrapper(self, forward_step)
        self.throughput = throughput
        self._forward_step = observed(forward_step, throughput)
        self._context: Optional[CallbackContext] = None
        self._iteration: Optional[int] = None
        """The iteration whose micro-batches are running; None outside of one."""

    def __call__(self, data_iterator: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            self._enter_iteration(model)
        elif self._context is not None:
            self._leave_iteration()
            self.throughput.on_eval_start(self._context)
        else:
            return self.__wrapped__(data_iterator, model, *args, **kwargs)  # type: ignore[attr-defined]  # before training
        return self._forward_step(data_iterator, model, *args, **kwargs)

    def __enter__(self) -> ThroughputForwardStep:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], *_: Any) -> None:
        if self._context is not None and kind in (None, SystemExit):  # not after a failure: other ranks may not come
            self._leave_iteration()
            self.throughput.on_train_end(self._context)

    def _enter_iteration(self, model: Any) -> None:
        args = get_args()
        if args.curr_iteration == self._iteration:
            return
        if self._context is None:
            run = getattr(get_wandb_writer(), "run", None)
            # In a pipeline this is one chunk of several, and the other stages are not at their start.
            alone = parallel_state.get_pipeline_model_parallel_world_size() == 1
            host = Host(
                config=args,
                step=lambda: args.curr_iteration,
                log_interval=args.log_interval,
                trackers=Trackers([AttachedWandb(run)] if run else []),
                model=[model] if alone else None,
            )
            self._context = CallbackContext(state=host, model=host.model)  # type: ignore[arg-type]
        self._leave_iteration()
        self._iteration = args.curr_iteration
        self.throughput.on_eval_end(self._context)
        self.throughput.on_train_step_start(self._context)

    def _leave_iteration(self) -> None:
        if self._iteration is not None and self._context is not None:
            self.throughput.on_train_step_end(self._context)
            self._iteration = None
