"""One run: the loop with its events, evaluation, checkpoints and reports.

::

    resume, trackers
    on_train_start
    for each step
        on_train_step_start
        micro-batches -> observe() -> device -> forward, backward; optimizer; one all-reduce of three numbers
        on_train_step_end
        every eval_interval    on_eval_start, on_eval_step_start, on_eval_step_end, ..., on_eval_end
        every save_interval    on_checkpoint_save, checkpoint
    on_train_end

SIGTERM and SIGINT end the loop after the next step, with a checkpoint.  The wish to stop travels in the all-reduce of
the loss and is read one step later, so it costs no collective and no wait for the device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from megatron.core.utils import get_model_config

from bridge.config import dump_config
from bridge.config.loader import as_written
from bridge.config.schema import Config
from bridge.data.loader import RunData, SampleSource, micro_batches
from bridge.data.schedule import BatchSchedule, MicroBatchSampler
from bridge.metrics.trackers import open_trackers, without_secrets
from bridge.training.callbacks import CallbackContext, CallbackManager
from bridge.training.callbacks.progress import JOB
from bridge.training.checkpoint import sharding, store
from bridge.training.checkpoint.folder import BASE, Base, Checkpoint
from bridge.training.engine.model import build_model, check_trainable, uses_bf16
from bridge.training.engine.optimizer import build_optimizer, build_scheduler
from bridge.training.errors import RunError
from bridge.training.job import restart
from bridge.training.job.agree import everywhere, gather
from bridge.training.job.ending import StopSignals
from bridge.training.job.ledger import JobLedger
from bridge.training.job.lock import JobLock
from bridge.training.state import Groups, TrainState
from bridge.training.step import Stepper, StepSums

__all__ = ["EVALUATION_LOSS", "Run", "check_trainable"]

EVALUATION_LOSS = "lm loss validation"
"""Name of the held-out loss among the logged numbers, as in Megatron-LM."""


def _not_alike(found: Checkpoint) -> str:
    """The error if a checkpoint has only trained weights and all are expected, or the other way round."""
    if found.base is not None:
        return (
            f"checkpoint.load: {found.path} holds only the weights that were trained on top of {found.base.path}. Use the recipe "
            f"it was saved with (its config.yaml), or set checkpoint.pretrained_checkpoint={found.base.path} and freeze the same "
            "parts."
        )
    return (
        f"checkpoint.load: {found.path} holds all weights, not those of a fine-tuning. To fine-tune it set "
        f"checkpoint.pretrained_checkpoint={found.path} and leave checkpoint.load out."
    )


def _write_for_us(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)  # it may have been there
        file.write(text)


class Run:
    """One run on one rank, from a built model to the end."""

    def __init__(
        self,
        cfg: Config,
        data: RunData,
        callbacks: CallbackManager,
        groups: Groups,
        device: torch.device,
        signals: StopSignals,
        ledger: JobLedger,
    ) -> None:
        self.cfg = cfg
        self.data = data
        self.callbacks = callbacks
        self.signals = signals
        self.ledger = ledger
        self.schedule: BatchSchedule = data.schedule
        number_format = "bf16" if uses_bf16(cfg.model) else "fp32"
        self.state = TrainState(cfg=cfg, groups=groups, device=device, number_format=number_format)
        self.model = build_model(cfg, device)
        self.optimizer = build_optimizer(cfg, self.model)
        self.scheduler = build_scheduler(cfg, self.optimizer)
        self.stepper = Stepper(cfg, self.model, self.optimizer, self.scheduler, groups, device)
        # Frozen weights stay in the checkpoint they come from and are not saved again.
        self._has_base = cfg.checkpoint.pretrained_checkpoint is not None and sharding.has_frozen(self.model)
        self._base: Base | None = None
        self._skipped = frozenset(cfg.train.skip_iterations)
        self._saved_step: int | None = None
        self._previous: StepSums | None = None
        self._stops = False
        self._redone: list[int] = []
        """Future steps at which an earlier process was killed; the ledger needs the total FLOPs there to know what was lost."""

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to ``train.train_iters``, or until a signal."""
        with JobLock() as lock:
            self._take_folders(lock)
            self._run()

    def _take_folders(self, lock: JobLock) -> None:
        """Lock the folders that the first rank writes to."""
        folders = [self.cfg.logger.dir, *([self.cfg.checkpoint.save] if self.cfg.checkpoint.save else [])]
        everywhere(lambda: lock.take(folders if self.state.groups.writes else []), "the job's folders")

    def _run(self) -> None:
        state, cfg = self.state, self.cfg
        self._check_same_text()
        self._resume()
        self._open_trackers()
        self.ledger.open()
        self._redone = gather(self.ledger.to_redo(state.step))[0]
        try:
            data = self.callbacks.observe(self._training_data())
            self._set_training(True)
            self._fire("on_train_start")
            self.ledger.begin(state.step, flops=self._total_flops())
            while state.step < cfg.train.train_iters and not self._stops:
                self._step(data)
                if self._due(cfg.train.eval_interval):
                    self._evaluate()
                if cfg.checkpoint.save and self._due(cfg.checkpoint.save_interval):
                    self._save()
            if self._stops:
                self._warn(f"{self.signals.received or 'a signal on another rank'}: ending after step {state.step}")
            if cfg.checkpoint.save and self._saved_step != state.step:
                self._save()
            self.ledger.mark("finishing", step=state.step, flops=self._total_flops())
            self._tell_goodput()
            self._fire("on_train_end")
        except BaseException:
            self._abandon()
            raise
        finally:
            state.trackers.close()
            self.ledger.mark("end", step=state.step)
            self.ledger.close()

    def _abandon(self) -> None:
        """The run fails: let callbacks publish what they have before the trackers are closed."""
        context = CallbackContext(state=self.state, model=self.model, user_state=self.callbacks.user_state)
        for callback in self.callbacks.callbacks:
            if hasattr(callback, "abandon"):
                callback.abandon(context)

    def _step(self, data: Any) -> None:
        """One step: train on a global batch, or skip it if the recipe says so."""
        state, cfg = self.state, self.cfg
        state.global_batch_size = self.schedule.size(state.consumed_samples)
        state.num_microbatches = state.global_batch_size // (cfg.train.micro_batch_size * state.groups.data_size)
        self._fire("on_train_step_start")
        if state.step + 1 in self._skipped:
            loss_dict, updated, grad_norm = {}, False, None
        else:
            totals, updated, grad_norm = self.stepper.train(data, state.num_microbatches, stop=self.signals.received is not None)
            loss_dict = totals.loss_dict()
            # The step before: its numbers are on the host's side of the optimizer's own wait for the gradient norm.
            self._stops = self._previous is not None and self._previous.stop()
            self._previous = totals
        state.step += 1
        state.consumed_samples += state.global_batch_size
        state.skipped_steps += not updated
        if state.step % cfg.logger.log_interval == 0 or state.step == cfg.train.train_iters:
            self._log(loss_dict, grad_norm)  # before the callbacks, which complete the row and may end it
        self._fire("on_train_step_end", loss_dict=loss_dict, grad_norm=grad_norm, skipped_iter=not updated)
        self.ledger.beat(state.step)
        if state.step in self._redone:
            self.ledger.mark("steps", step=state.step, flops=self._total_flops())

    def _due(self, interval: int | None) -> bool:
        return interval is not None and self.state.step % interval == 0

    # ---- data -------------------------------------------------------------------------------------------------------

    def _check_same_text(self) -> None:
        """Raise RunError unless all ranks read the same documents: otherwise totals would mean nothing."""
        fingerprints = gather(self.data.fingerprint)
        other = next((rank for rank, found in enumerate(fingerprints) if found != fingerprints[0]), None)
        if other is not None:
            raise RunError(
                f"data.path={self.cfg.data.path!r}: rank 0 reads {fingerprints[0]}, rank {other} reads "
                f"{fingerprints[other]}. Put the same text on every machine, or on a disk they share.",
                shared=True,
            )

    def _training_data(self) -> Any:
        state = self.state
        start = {"step": state.step, "consumed_samples": state.consumed_samples, "skip": self._skipped}
        return self._iterators(self.data.training, self.schedule, **start)

    def _iterators(self, samples: SampleSource, schedule: BatchSchedule, **start: Any) -> Any:
        """An iterator of this replica's micro-batches; under virtual pipelining a list with an equal one for each chunk.

        ``start``: the position of the sampler, as for :class:`MicroBatchSampler`.
        """
        groups, cfg = self.state.groups, self.cfg
        sampler = MicroBatchSampler(
            schedule,
            micro_batch_size=cfg.train.micro_batch_size,
            data_rank=groups.data_rank,
            data_size=groups.data_size,
            **start,
        )
        loading: dict[str, Any] = {"num_workers": cfg.data.num_workers, "pin_memory": self.state.device.type == "cuda"}
        iterators = [micro_batches(samples, sampler, self.data.collate, **loading) for _ in self.model]
        return iterators[0] if len(iterators) == 1 else iterators

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Evaluate on ``train.eval_iters`` global batches of held-out text, always the same ones; their FLOPs are not counted."""
        cfg, state = self.cfg, self.state
        self.ledger.mark("evaluation", step=state.step)
        assert self.data.evaluation is not None
        size = cfg.train.global_batch_size
        data = self._iterators(self.data.evaluation, BatchSchedule(size))
        micro_batches_each = size // (cfg.train.micro_batch_size * state.groups.data_size)
        with self._whole_parameters():
            self._set_training(False)
            self._fire("on_eval_start")
            sums = torch.zeros(3, dtype=torch.float64, device=state.device)
            for _ in range(cfg.train.eval_iters):
                self._fire("on_eval_step_start")
                sums += self.stepper.evaluate(data, micro_batches_each).values
                self._fire("on_eval_step_end")
            losses = StepSums(sums).loss_dict()
            self._fire("on_eval_end", total_loss_dict=losses)
            self._set_training(True)
        if state.groups.writes:
            state.trackers.log({EVALUATION_LOSS: next(iter(losses.values())).item()}, state.step)
        self.ledger.mark("steps", step=state.step)

    def _set_training(self, mode: bool) -> None:
        for chunk in self.model:
            chunk.train(mode)

    @contextmanager
    def _whole_parameters(self) -> Iterator[None]:
        """Gather all parameters: outside of training steps they must be complete, even if steps gather them layer by layer."""
        if not self.cfg.optimizer.overlap_param_gather:
            yield
            return
        config = get_model_config(self.model[0])
        gather, config.param_sync_func = config.param_sync_func, None
        for chunk in self.model:
            chunk.disable_forward_pre_hook(param_sync=True)
        try:
            yield
        finally:
            for chunk in self.model:
                chunk.enable_forward_pre_hook()
            config.param_sync_func = gather

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        state, cfg = self.state, self.cfg
        assert cfg.checkpoint.save is not None
        self.ledger.mark("checkpoint", step=state.step)
        self._fire("on_checkpoint_save")
        with self._whole_parameters():
            store.save(
                Path(cfg.checkpoint.save),
                state.step,
                self._sharded_state(),
                {
                    **({"base": asdict(self._base)} if self._has_base and self._base is not None else {}),
                    "step": state.step,
                    "consumed_samples": state.consumed_samples,
                    "skipped_steps": state.skipped_steps,
                    "wandb_run_id": state.trackers.run_id,
                    "data": self._data_identity(),
                    "callbacks": self.callbacks.state_dict(),
                },
                state.groups,
                keep=cfg.checkpoint.keep,
            )
        self._saved_step = state.step
        self._say(f"step {state.step}  saved to {cfg.checkpoint.save}")
        self.ledger.mark("steps", step=state.step, flops=self._total_flops())
        self.ledger.sync()

    def _resume(self) -> None:
        """Continue from the checkpoint in ``checkpoint.load``; if there is none, load the base, if any."""
        state, folder = self.state, self.cfg.checkpoint.load
        if folder is None:
            self._take_base()
            return
        found, notes = store.find(Path(folder), state.groups)
        if found is None:
            self._warn(*notes)
            self._say(f"no checkpoint in {folder}: starting a new run")
            self._take_base()
            return
        if self._has_base != (found.base is not None):
            raise RunError(_not_alike(found), shared=True)
        if self._has_base:
            self._take_base(found.base)
        tensors = self._sharded_state(is_loading=True)
        sharding.restore(store.load(found, tensors), self.model, self.optimizer, self.scheduler)
        restarted = store.load_random(found, state.groups)
        if restarted and (self.cfg.model.hidden_dropout or self.cfg.model.attention_dropout):
            notes.append(restarted)
        saved = found.state
        state.step = saved["step"]
        state.consumed_samples = saved["consumed_samples"]
        state.skipped_steps = saved["skipped_steps"]
        state.wandb_run_id = saved["wandb_run_id"]
        state.resumed_from = str(found.path)
        self.callbacks.load_state_dict(saved["callbacks"])
        changed = [name for name, value in self._data_identity().items() if saved["data"].get(name) != value]
        if changed:
            notes.append(
                f"the data has changed since the checkpoint ({', '.join(changed)}): training continues at sample "
                f"{state.consumed_samples} of the new order"
            )
        if self.cfg.checkpoint.save and found.path.parent == Path(self.cfg.checkpoint.save):
            self._saved_step = state.step
        self._warn(*notes)
        self._say(f"resumed from {found.path}: {state.step} steps, {state.consumed_samples} samples")

    def _sharded_state(self, *, is_loading: bool = False) -> Any:
        return sharding.sharded_state(
            self.model,
            self.optimizer,
            self.scheduler,
            is_loading=is_loading,
            adapted=self.cfg.peft is not None,
            frozen=not self._has_base,
        )

    def _take_base(self, known: Base | None = None) -> None:
        """Load the weights of ``checkpoint.pretrained_checkpoint``, if it is set; ``known``: the base that is required."""
        folder = self.cfg.checkpoint.pretrained_checkpoint
        if folder is None:
            return
        found, notes = store.find_base(Path(folder), self.state.groups, known)
        loaded = store.load(found, sharding.base_weights(self.model), BASE)
        sharding.restore_base(loaded, self.model, self.optimizer)
        self._base = Base(str(found.path.resolve()), found.fingerprint)
        self._warn(*notes)
        self._say(f"fine-tuning {found.path}")

    def _data_identity(self) -> dict[str, Any]:
        """Everything that determines the order of the samples."""
        cfg = self.cfg
        return {
            "documents": self.data.fingerprint,
            "data.batching": cfg.data.batching,
            "data.eval_fraction": cfg.data.eval_fraction,
            "model.seq_length": cfg.model.seq_length,
            "train.seed": cfg.train.seed,
        }

    # ---- reports ----------------------------------------------------------------------------------------------------

    def _total_flops(self) -> int | None:
        """Total FLOPs of all steps so far on all ranks, if a callback counts them. A collective."""
        counters = (callback.total_flops for callback in self.callbacks.callbacks if hasattr(callback, "total_flops"))
        return next((count() for count in counters), None)

    def _tell_goodput(self) -> None:
        """Publish how the job's time was spent, together with the run's other results."""
        job = self.ledger.job()
        if job is not None and self.state.groups.writes:
            self.callbacks.user_state[JOB] = job.metrics()
            self.state.trackers.summary(job.metrics())

    def _fire(self, event: str, **fields: Any) -> None:
        if not self.callbacks.has_callbacks(event):
            return
        context = CallbackContext(state=self.state, model=self.model, user_state=self.callbacks.user_state, **fields)
        if event.startswith(("on_train", "on_checkpoint")):
            context.optimizer, context.scheduler = self.optimizer, self.scheduler
        self.callbacks.fire(event, context)

    def _log(self, loss_dict: dict[str, torch.Tensor], grad_norm: float | None) -> None:
        """Log the loop's own numbers of this step; callbacks complete the row."""
        state = self.state
        if not state.groups.writes:
            return
        row: dict[str, Any] = {name: loss.item() for name, loss in loss_dict.items()}
        if grad_norm is not None:
            row["grad-norm"] = grad_norm
        row["learning-rate"] = self.optimizer.param_groups[0]["lr"]
        row["batch-size"] = state.global_batch_size
        row["consumed-samples"] = state.consumed_samples
        row["skipped-iterations"] = state.skipped_steps
        state.trackers.log(row, state.step)

    def _open_trackers(self) -> None:
        state, cfg = self.state, self.cfg
        if not state.groups.writes:
            return
        try:
            folder = Path(cfg.logger.dir)
            folder.mkdir(parents=True, exist_ok=True)
            _write_for_us(folder / "config.yaml", dump_config(cfg, without_secrets))
        except OSError as error:
            self._warn(f"logger.dir={cfg.logger.dir!r} cannot be written: {error.strerror}; training continues without it")
        run_id = state.wandb_run_id or restart.known_run_id(Path(cfg.logger.dir))
        state.trackers = open_trackers(cfg.logger, name=cfg.name, step=state.step, run_id=run_id, config=as_written(cfg))
        restart.remember_run_id(Path(cfg.logger.dir), state.trackers.run_id)

    def _say(self, line: str) -> None:
        if not self.cfg.logger.quiet:
            self._warn(line)

    def _warn(self, *lines: str) -> None:
        if self.state.groups.writes:
            for line in lines:
                print(line, flush=True)
