"""Hugging Face: a ``TrainerCallback`` that counts what the model is called with while it trains.

::

    trainer = Trainer(model=model, args=args, train_dataset=dataset, data_collator=collator)
    throughput = add_throughput(trainer, convention="exact")
    trainer.train()

The Trainer fetches batches ahead and shares its collator with evaluation, so batches are counted in a hook before the model's
forward pass.  A row is added to each of the Trainer's own logs of the loss, at the same step, where the Trainer waits for all
ranks anyway.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch

from bridge.config.sources.huggingface_model import from_huggingface_model, traced_model
from bridge.flops import ConfigError, compile_plan
from bridge.integrations import trl_head, trl_phases
from bridge.metrics.host import Host
from bridge.metrics.interval import never_read
from bridge.tracing.images import inner
from bridge.training.callbacks import CallbackContext, ThroughputCallback

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError("bridge.integrations.transformers_trainer needs transformers: pip install transformers") from error

logger = logging.getLogger(__name__)

#: Types of options that the Trainer's state, a JSON file, can contain.
_PLAIN = (str, int, float, list, type(None))


class ThroughputTrainerCallback(TrainerCallback, ExportableState):
    """Exact FLOPs, MFU and token rates in the Trainer's logs; totals in its checkpoints.

    Args:
        config: prices the model; None: it is read from the model and its LoRA adapters.
        options: options of :class:`~bridge.training.callbacks.ThroughputCallback`; the Trainer decides when to log.
    """

    def __init__(self, config: Any = None, **options: Any) -> None:
        self._config, self._options = config, options
        self.throughput = self._new()
        self._hook: Any = None
        self._evaluates = False
        self._phases: trl_phases.Phases | None = None
        self.totals: dict[str, Any] = {}
        """The totals of the checkpoint that training resumed from."""

    def _new(self) -> ThroughputCallback:
        return ThroughputCallback(**{**self._options, "log_interval": None})  # it never logs by itself

    def state(self) -> dict[str, Any]:
        """The state that the Trainer keeps in ``trainer_state.json``."""
        plain = {name: value for name, value in self._options.items() if isinstance(value, _PLAIN)}
        return {"args": plain, "attributes": {"totals": self.throughput.state_dict()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any) -> None:
        self._leave_model()  # an earlier training may have failed
        self.throughput = self._new()
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step and isinstance(saved, dict):
            self.throughput.load_state_dict(saved["attributes"]["totals"])
        self._context = CallbackContext(state=None, model=[model], optimizer=optimizer)
        if problem := _problem(args, model):
            self.throughput.fail(ConfigError(problem))
            return
        low = next((name for name in ("bf16", "fp16") if getattr(args, name)), None)
        self._context.state = Host(
            config=self._read(model),
            step=lambda: state.global_step,
            log_interval=None,
            number_format=low or ("bf16" if getattr(model, "dtype", None) == torch.bfloat16 else "fp32"),
            model=[model],
            fused_output_layer=trl_head.leaves_out(model),
        )
        self.throughput.on_train_start(self._context)
        self._hook = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _read(self, model: Any) -> Any:
        if self._config is not None:
            return self._config
        try:
            found = from_huggingface_model(model)
            return found if _is_readable(found, model) else _traced(found, model)
        except Exception as error:  # any module may be trained
            logger.warning("FLOPs and MFU are not reported, the model cannot be priced: %s", error)
            return None

    @torch.compiler.disable
    def _see(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if module.training and torch.is_grad_enabled():
            self.throughput.count(trl_head.with_projected(kwargs) if self._context.state.fused_output_layer else kwargs)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._evaluate(False)
        self.throughput.on_train_step_start(self._context)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.throughput.on_train_step_end(self._context)
        self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save or control.should_evaluate:  # the best model is saved after the evaluation
            self.throughput.on_checkpoint_save(self._context)
        self._evaluate(control.should_evaluate)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._evaluate(True)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._evaluates:
            self._evaluate(False)
            if control.should_save:
                self.throughput.on_checkpoint_save(self._context)

    def _evaluate(self, does: bool) -> None:
        """An evaluation during training begins or ends."""
        if self._hook is not None and does != self._evaluates:
            self._evaluates = does
            (self.throughput.on_eval_start if does else self.throughput.on_eval_end)(self._context)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs or "train_loss" in logs:  # not those of an evaluation
            self.throughput.report(self._context)
            row = {key: value for key, value in self.throughput.latest.items() if key != "step"}
            if self._phases is not None:
                row |= self._phases.row()
            logs.update(row)
            state.log_history[-1].update(row)

    def watch(self, trainer: Trainer) -> None:
        """Count a TRL trainer's passes without gradients too, under keys of their own."""
        self._phases = trl_phases.watch(trainer, self._read, self.throughput.convention)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.throughput.on_train_end(self._context)
        self._leave_model()

    def _leave_model(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._evaluates = None, False
        self.throughput.close()


def _is_readable(config: Any, model: Any) -> bool:
    """Whether the Trainer's batches have all lengths that the plan needs; audio, and pixels of a fixed size, have none."""
    plan = compile_plan(config, "executed")
    sized = "image_grid_thw" in inspect.signature(inner(model).forward).parameters
    patches = any(statistic.over == "images" and statistic.kind != "count" for statistic in plan.statistics)
    return not never_read(plan) and (sized or not patches)


def _traced(config: Any, model: Any) -> Any:
    """The configuration from a trace of the model, if the Trainer's batches have all lengths that it needs; else ``config``."""
    if config.source == "traced":
        return config
    try:
        traced = traced_model(model)
    except ConfigError:
        return config
    return traced if _is_readable(traced, model) else config


def _problem(args: Any, model: Any) -> str | None:
    """Why the batches of all ranks do not add up to the work of the devices; None if they do."""
    if args.n_gpu > 1:
        return f"{args.n_gpu} GPUs share this process (DataParallel); start one process per GPU with torchrun or accelerate"
    layout = getattr(args, "parallelism_config", None)
    if max(getattr(layout, "non_data_parallel_size", 1), getattr(model, "tp_size", None) or 1) > 1:
        return "ranks share their batches (tensor, context or sequence parallel); only data-parallel ranks are supported"
    return None


def add_throughput(trainer: Trainer, config: Any = None, **options: Any) -> ThroughputTrainerCallback:
    """Register a callback before the Trainer's reporters, so that W&B, TensorBoard and others get its rows with the loss."""
    callback = ThroughputTrainerCallback(config, **options)
    callback.watch(trainer)
    trainer.callback_handler.callbacks.insert(1, callback)  # after the one that decides when to log and to save
    return callback
