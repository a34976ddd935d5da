"""The console: a table at the start, a line per log point, a summary at the end. One rank prints.

On a terminal the output is colored; elsewhere (a pipe, a log file) it is plain lines.  Rates come from
``ThroughputCallback``, if there is one; it must be registered first.  A line waits for its report, which arrives a step
later.  Losses are read only then, when the device has computed them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

from bridge.metrics.keys import LAYOUT
from bridge.metrics.place import find_place
from bridge.metrics.trackers import Trackers
from bridge.metrics.why import waterfall, why
from bridge.text import duration, gib, percent, significant, with_unit
from bridge.training.callbacks.events import Callback, CallbackContext
from bridge.training.callbacks.throughput import FACTS, ROWS, SUMMARY

logger = logging.getLogger(__name__)

#: Key of ``context.user_state`` under which the loop puts the job's goodput.
JOB = "goodput"


_short = partial(with_unit, digits=3)


@dataclass(frozen=True)
class _Line:
    """A log point that has not been printed yet."""

    step: int
    losses: Mapping[str, Any]
    grad_norm: float | None
    learning_rate: float | None
    skipped: bool


class ProgressCallback(Callback):
    """Prints the progress of training.

    Args:
        log_interval: steps between lines; by default ``cfg.logger.log_interval``.
        stream: where to print; by default standard output.
    """

    def __init__(self, log_interval: int | None = None, stream: TextIO | None = None) -> None:
        self._log_interval = log_interval
        self._stream = stream
        self._prints = False
        self._open: list[_Line] = []
        self._step = self._first_step = 0
        self._steps: int | None = None
        self._started = 0.0
        self._loss: float | None = None

    # ---- events ---------------------------------------------------------------------------------------------------

    def on_train_start(self, context: CallbackContext) -> None:
        """Print the start table."""
        state = context.state
        groups = getattr(state, "groups", None)
        if groups is not None:
            self._prints = groups.writes
        else:  # in Megatron's loops the last rank always has the loss
            self._prints = find_place().is_last
        self._step = self._first_step = state.train_state.step
        self._steps = getattr(getattr(state.cfg, "train", None), "train_iters", None)
        self._log_interval = self._log_interval or getattr(getattr(state.cfg, "logger", None), "log_interval", None) or 10
        self._started = time.perf_counter()
        if self._prints:
            self._table("training", start_table(state, context.user_state.get(FACTS)))

    def on_train_step_end(self, context: CallbackContext) -> None:
        """Print the lines whose numbers have arrived."""
        self._step += 1
        if not self._prints:
            return
        if self._step % self._log_interval == 0:  # type: ignore[operator]
            losses, skipped = dict(context.loss_dict or {}), bool(context.skipped_iter)
            self._open.append(_Line(self._step, losses, context.grad_norm, _learning_rate(context), skipped))
        if self._open:
            self._print_open(context.user_state)

    def on_eval_end(self, context: CallbackContext) -> None:
        """Print the losses of an evaluation."""
        if self._prints and context.total_loss_dict:
            losses = "  ".join(f"{name} {_number(value):.4f}" for name, value in context.total_loss_dict.items())
            self._print(f"step {self._step}  evaluation  {losses}")

    def on_train_end(self, context: CallbackContext) -> None:
        """Print the remaining lines and the summary."""
        if not self._prints:
            return
        self._print_open(context.user_state, everything=True)
        whole = context.user_state.get(SUMMARY) or {}
        trackers = getattr(context.state, "trackers", None)
        look = trackers.how_to_look() if isinstance(trackers, Trackers) else []
        self._table("done", self._end_table(whole, context.user_state.get(JOB) or {}, look))
        if sentence := why(waterfall([whole])):
            self._print(sentence)

    # ---- lines ----------------------------------------------------------------------------------------------------

    def _print_open(self, user_state: Mapping[str, Any], *, everything: bool = False) -> None:
        rows = user_state.get(ROWS) or {}
        newest = max(rows, default=-1)
        while self._open:
            line = self._open[0]
            awaited = FACTS in user_state and not everything and self._step - line.step < self._log_interval  # type: ignore[operator]
            if line.step > newest and awaited:
                return
            self._open.pop(0)
            self._print(self._text(line, rows.get(line.step, {})))

    def _text(self, line: _Line, row: Mapping[str, Any]) -> str:
        steps = f"{line.step}/{self._steps}" if self._steps else f"{line.step}"
        parts = [f"step {steps}"]
        for name, value in line.losses.items():
            self._loss = _number(value)
            parts.append(f"{'loss' if name == 'lm loss' else name} {self._loss:.4f}")
        if line.grad_norm is not None:
            parts.append(f"grad norm {float(line.grad_norm):.3f}")
        if line.learning_rate is not None:
            parts.append(f"lr {line.learning_rate:.2e}")
        if line.skipped:
            parts.append("skipped")
        step_time = row.get("throughput/step_time")
        if step_time is None and self._step > self._first_step:
            step_time = (time.perf_counter() - self._started) / (self._step - self._first_step)
        if step_time:
            parts.append(f"{1e3 * step_time:.1f} ms/step")
        if "throughput/tokens_per_sec" in row:
            parts.append(f"{_short(row['throughput/tokens_per_sec'])} tokens/s")
        if "throughput/tflops/device" in row:
            parts.append(_rate(row))
        if "throughput/mfu" in row:
            parts.append(f"MFU {percent(row['throughput/mfu'])}")
        if "throughput/memory/peak_allocated" in row:
            parts.append(gib(row["throughput/memory/peak_allocated"]))
        if step_time and self._steps:
            parts.append(f"ETA {duration((self._steps - line.step) * step_time)}")
        return "  ".join(parts)

    def _end_table(self, row: Mapping[str, Any], job: Mapping[str, Any], look: list[str]) -> list[tuple[str, str]]:
        seconds = time.perf_counter() - self._started
        table = [("steps", f"{self._first_step} to {self._step}, {duration(seconds)}")]
        if self._loss is not None:
            table.append(("last loss", f"{self._loss:.4f}"))
        least = "at least " if "throughput/incomplete" in row else ""
        if "throughput/total_tokens" in row:
            table.append(("tokens", f"{least}{row['throughput/total_tokens']:,}"))
        if "throughput/total_flops" in row:
            table.append(("FLOPs", f"{least}{row['throughput/total_flops']:,}"))
        if "throughput/tflops/device" in row:
            utilisation = f", MFU {percent(row['throughput/mfu'])}" if "throughput/mfu" in row else ""
            table.append(("speed, median", _rate(row) + utilisation))
        if "goodput" in job:
            table.append(("goodput", _goodput(job)))
        return table + [tuple(line.split(": ", 1)) if ": " in line else ("", line) for line in look]  # type: ignore[misc]

    # ---- printing -------------------------------------------------------------------------------------------------

    def _print(self, text: str) -> None:
        self._show(lambda console: console.print(text, markup=False), text)

    def _table(self, title: str, rows: list[tuple[str, str]]) -> None:
        def draw(console: Any) -> None:
            from rich.table import Table

            table = Table(title=title, show_header=False, title_justify="left")
            for name, value in rows:
                table.add_row(name, value)
            console.print(table)

        width = max((len(name) for name, _ in rows), default=0)
        self._show(draw, "\n".join([f"== {title} ==", *(f"{name:<{width}}  {value}" for name, value in rows)]))

    def _show(self, draw: Callable[[Any], None], plain: str) -> None:
        """Call ``draw`` with a rich console on a terminal; print the plain text elsewhere."""
        if not self._prints:
            return
        out = self._stream or sys.stdout
        try:
            if out.isatty():
                from rich.console import Console

                draw(Console(file=out, soft_wrap=True))
            else:
                print(plain, file=out, flush=True)
        except (OSError, ValueError) as error:  # a full disk, a reader that is gone, a closed stream
            self._prints = False
            _release(out)
            logger.warning("the console cannot be written (%s); training continues without output", error)


def _release(out: TextIO) -> None:
    """Discard the stream's buffer; otherwise Python would try to write it at exit and fail with code 120."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def start_table(state: Any, facts: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """A description of the run for the start table."""
    cfg, facts = state.cfg, facts or {}
    model = cfg.model
    name = getattr(cfg, "name", None)
    rows = [("run", str(name))] if name else []
    shape = [
        f"{value} {word}"
        for name, word in (
            ("num_layers", "layers"),
            ("hidden_size", "hidden"),
            ("num_attention_heads", "heads"),
            ("num_moe_experts", "experts"),
        )
        if (value := getattr(model, name, None))
    ]
    rows.append(("model", ", ".join(shape)))
    if parameters := facts.get("parameters"):
        active = f", {_short(parameters['active'])} active" if parameters.get("active") != parameters["total"] else ""
        trained = parameters.get("trainable", parameters["total"])
        share = significant(100 * trained / parameters["total"], 3)
        frozen = f", {_short(trained)} trained ({share}%)" if trained != parameters["total"] else ""
        rows.append(("parameters", f"{_short(parameters['total'])} ({parameters['total']:,}){active}{frozen}"))
    if "flops_per_token" in facts:
        length = facts["flops_per_token_seq_length"]
        price = f"{_short(facts['flops_per_token'])} at {length} tokens, {facts['convention']} convention"
        rows.append(("FLOPs per token", price))
    if facts:
        layout = " x ".join(f"{name} {facts[key]}" for name, key in LAYOUT.items() if facts[key] > 1) or "one replica, unsplit"
        rows.append(("layout", f"{facts['world_size']} rank(s): {layout}"))
        peak = facts["peak_flops"]
        speed = with_unit(peak, "FLOP/s", 3) if peak else "unknown, no MFU"
        rows.append(("device", f"{facts['device']}, {facts.get('number_format_recipe') or facts['number_format']}"))
        rows.append(("peak per device", f"{speed} ({facts['peak_source']})"))
        if facts["not_counted"]:
            rows.append(("not counted", "; ".join(facts["not_counted"])))
    train = getattr(cfg, "train", None)
    if train is not None:
        rows.append(("batch", f"{train.global_batch_size} sequences, micro-batches of {train.micro_batch_size}"))
        rows.append(("steps", f"{train.train_iters}, from {state.train_state.step}"))
    return rows


def _goodput(job: Mapping[str, Any]) -> str:
    """The job so far: productive time, FLOPs kept, and interruptions."""
    parts = [f"{job['goodput']:.1%} of the job's time"]
    if "goodput/flops" in job:
        parts.append(f"{job['goodput/flops']:.1%} of its FLOPs kept")
    if times := job.get("goodput/interruptions"):
        parts.append(f"{times} interruption{'s' if times > 1 else ''}")
    return ", ".join(parts)


def _rate(row: Mapping[str, Any]) -> str:
    """FLOP/s per device and, if something is frozen, the rate by 6 x parameters x tokens."""
    rate = f"{row['throughput/tflops/device']:.4g} TFLOP/s/device"
    claimed = row.get("throughput/tflops/device_6nd")
    return rate if claimed is None else f"{rate} (6ND: {claimed:.4g})"


def _number(value: Any) -> float:
    """A loss as a number: a scalar, or megatron-core's (sum, count)."""
    if isinstance(value, (tuple, list)):
        total, count = value
        return float(total) / max(float(count), 1.0)
    if hasattr(value, "numel") and value.numel() == 2:
        return float(value[0]) / max(float(value[1]), 1.0)
    return float(value)


def _learning_rate(context: CallbackContext) -> float | None:
    groups = getattr(context.optimizer, "param_groups", None)
    return float(groups[0]["lr"]) if groups else None
