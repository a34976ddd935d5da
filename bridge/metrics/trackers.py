"""Where rows of metrics go: a file of JSON lines, and W&B. Only the rank that writes has trackers.

A tracker may fail at any time (no network, a full disk, a service that dies): then it says so once and is silent from
there on.  Training never notices: nothing here raises, and W&B, which talks to another process, does so from a
thread of its own, so that a stuck connection cannot hold a step back.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import netrc
import os
import queue
import secrets
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Protocol
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

Metrics = Mapping[str, Any]

#: Seconds that the end of a run waits for W&B to write or upload what is left.
CLOSE_TIMEOUT = 60.0

#: Seconds after which W&B's server counts as unreachable. Training does not wait for it.
INIT_TIMEOUT = 20.0

#: Rows that wait for more metrics of their step before they are written; see ``Trackers.log``.
OPEN_ROWS = 2


class Tracker(Protocol):
    """A destination of complete rows, in rising order of steps."""

    def log(self, metrics: Metrics, step: int) -> None:
        """Write one row."""

    def summary(self, facts: Metrics) -> None:
        """Write what is true of the run as a whole; called again, it adds and replaces."""

    def close(self) -> None:
        """Write what is left."""

    def how_to_look(self) -> list[str]:
        """Lines for the user: where the results are, and the command that shows them."""


class Trackers:
    """All trackers of a run, as one. A row may come in parts, and a tracker that fails is dropped with one warning.

    ``log`` has the meaning of W&B's ``step`` and ``commit``: parts with the same step become one row, written when a
    part says ``commit`` or when a later step needs the room.
    """

    def __init__(self, trackers: Sequence[Tracker] = (), *, run_id: Optional[str] = None) -> None:
        self._trackers = list(trackers)
        self._rows: dict[int, dict[str, Any]] = {}
        self.run_id = run_id
        """W&B's id of this run, to be kept in the checkpoint; None without W&B."""

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def log(self, metrics: Metrics, step: int, commit: bool = False) -> None:
        """Add metrics to the row of ``step``; ``commit`` writes it, and all rows before it."""
        self._rows.setdefault(step, {}).update(metrics)
        if commit:
            self._write([open_step for open_step in sorted(self._rows) if open_step <= step])
        else:
            self._write(sorted(self._rows)[:-OPEN_ROWS])

    def summary(self, facts: Metrics) -> None:
        """Constants of the run, and its results."""
        self._each(lambda tracker: tracker.summary(facts))

    def close(self) -> None:
        """Write the open rows and end; more calls do nothing."""
        self._write(sorted(self._rows))
        self._each(lambda tracker: tracker.close())
        self._trackers = []

    def how_to_look(self) -> list[str]:
        """Where the results are."""
        lines: list[str] = []
        self._each(lambda tracker: lines.extend(tracker.how_to_look()))
        return lines

    def _write(self, steps: Sequence[int]) -> None:
        for step in steps:
            row = self._rows.pop(step)
            if row:
                self._each(functools.partial(_log, row=row, step=step))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                logger.warning("%s stopped: %s. Training goes on without it.", type(tracker).__name__, error)
                _quietly(tracker.close)


def _log(tracker: Tracker, row: Metrics, step: int) -> None:
    tracker.log(row, step)


def _quietly(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:
        logger.debug("closing a broken tracker", exc_info=True)


# ---- JSON lines --------------------------------------------------------------------------------------------------


class JsonlTracker:
    """One JSON object per log point, ``{"step": ..., "throughput/...": ...}``; facts go to ``<name>.summary.json``.

    Every row is one write of a whole line, so a killed run leaves at most one torn line, which the next start removes.

    Args:
        path: the file; missing folders are made.
        step: the step training starts after. 0: a new run, an old file is kept as ``<path>.previous``. Else the rows
            after that step are dropped, since these steps will be trained again.
    """

    def __init__(self, path: os.PathLike[str] | str, *, step: int = 0) -> None:
        self.path = Path(path)
        self._summary_path = self.path.with_suffix(".summary.json")
        self._facts: dict[str, Any] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():  # a device or a pipe is written to as it is
            if step:
                self._forget_rows_after(step)
            elif self.path.stat().st_size:
                self.path.replace(self.path.with_name(self.path.name + ".previous"))
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115

    def _forget_rows_after(self, step: int) -> None:
        kept = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if line.endswith(b"\n") and isinstance(row, dict) and row.get("step", 0) <= step:
                kept.append(line)
        _write_atomically(self.path, b"".join(kept))

    def log(self, metrics: Metrics, step: int) -> None:
        line = (json.dumps({"step": step, **_plain(metrics)}) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(f"{self.path}: a line was written in part; the disk is full")

    def summary(self, facts: Metrics) -> None:
        self._facts.update(_plain(facts))
        if not self.path.exists() or self.path.is_file():
            _write_atomically(self._summary_path, json.dumps(self._facts, indent=2).encode())

    def close(self) -> None:
        self._file.close()

    def how_to_look(self) -> list[str]:
        return [f"metrics: {self.path}"]


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def _plain(value: Any) -> Any:
    """What JSON and W&B can hold: numbers, strings, lists and mappings; NaN and infinities become strings.

    Integers stay integers, whatever their size: Python's JSON reads them back exactly.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item") and getattr(value, "size", None) in (1,) or hasattr(value, "numel") and value.numel() == 1:
        return _plain(value.item())
    return str(value)


# ---- W&B ---------------------------------------------------------------------------------------------------------


class WandbTracker:
    """A W&B run, offline unless an account is configured; fed from a thread of its own.

    Integers above 2^53 lose digits in W&B's charts (JSON numbers are doubles there); metrics.jsonl has all of them.

    Args:
        project, entity, name, tags: as in ``wandb.init``.
        directory: where the ``wandb/`` folder goes.
        run_id: continues the run of this id.
        mode: ``online``, ``offline`` or ``disabled``; None: offline unless an account is configured.
        config: the run's options, shown by W&B; secrets are taken out.
    """

    def __init__(
        self,
        *,
        project: str,
        directory: str,
        run_id: str,
        name: Optional[str] = None,
        entity: Optional[str] = None,
        tags: Sequence[str] = (),
        mode: Optional[str] = None,
        config: Optional[Mapping[str, Any]] = None,
    ) -> None:
        import wandb  # here, so that a missing package is this tracker's failure alone

        self._wandb = wandb
        self.mode = mode or default_mode()
        self._arguments = {
            "project": project,
            "dir": directory,
            "id": run_id,
            "name": name,
            "entity": entity,
            "tags": list(tags),
            "config": without_secrets(_plain(config or {})),
        }
        self._run: Any = None
        self._started = threading.Event()
        self._error: Optional[BaseException] = None
        self._calls: queue.SimpleQueue[Optional[Callable[[Any], None]]] = queue.SimpleQueue()
        self._folder = os.path.join(directory, "wandb")
        os.makedirs(directory, exist_ok=True)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    # In the training loop's thread: never blocks.

    def log(self, metrics: Metrics, step: int) -> None:
        row = {"step": step, **_plain(metrics)}
        # With `step` alone W&B would hold the newest row back until the next one; a kill would lose it.
        self._put(lambda run: run.log(row, step=step, commit=True))

    def summary(self, facts: Metrics) -> None:
        plain = without_secrets(_plain(facts))
        self._put(lambda run: (run.config.update(plain, allow_val_change=True), run.summary.update(plain)))

    def _put(self, call: Callable[[Any], Any]) -> None:
        if self._error is not None:
            raise self._error
        self._calls.put(call)

    def close(self) -> None:
        """Waits for the thread, but not longer than ``CLOSE_TIMEOUT``."""
        if self._thread.is_alive():
            self._calls.put(None)
            self._thread.join(CLOSE_TIMEOUT)
            if self._thread.is_alive():
                # Else W&B's exit hook would wait for its service, and the process with it.
                threading.Thread(target=_quietly, args=(self._wandb.teardown,), daemon=True).start()
                raise TimeoutError(f"W&B did not finish within {CLOSE_TIMEOUT:.0f} s; its files are in {self._folder}")
        error, self._error = self._error, None
        if error is not None:
            raise error

    def how_to_look(self) -> list[str]:
        self._started.wait(CLOSE_TIMEOUT)  # at the end of a run, which waits for W&B anyway
        run = self._run
        if run is None or self.mode == "disabled":
            return []
        if self.mode == "online":
            return [f"W&B: {run.url}"]
        folder = shlex.quote(_nearby(run.settings.sync_dir))
        return [f"W&B, here: wandb leet {folder}", f"W&B, in the browser: wandb sync {folder}"]

    # In the tracker's own thread.

    def _work(self) -> None:
        try:
            self._run = self._start()
            self._started.set()
            while (call := self._calls.get()) is not None:
                call(self._run)
            self._run.finish()
        except Exception as error:
            self._error = error
        finally:
            self._started.set()
            # Also takes W&B's exit hook back, which would wait for, or stumble over, a service that is gone.
            _quietly(self._wandb.teardown)

    def _start(self) -> Any:
        try:
            run = self._init(self.mode)
        except Exception as error:
            if self.mode != "online":
                raise
            logger.warning("W&B cannot be reached (%s); this run is kept offline.", (str(error) or repr(error)).splitlines()[0])
            self.mode = "offline"
            _quietly(self._wandb.teardown)  # the run's id is taken by the failed start
            run = self._init(self.mode)
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def _init(self, mode: Any) -> Any:
        settings = self._wandb.Settings(
            console="off",  # the console belongs to the progress line
            silent=True,
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT)),
            x_transaction_log_flush_interval=0.2,  # seconds that a kill can lose; the default is 15
        )
        return self._wandb.init(mode=mode, resume="allow", settings=settings, **self._arguments)


class AttachedWandb:
    """A W&B run that belongs to somebody else's loop: rows are added to it, it is neither started nor finished here.

    Args:
        wandb: the module, or a run.
    """

    def __init__(self, wandb: Any) -> None:
        self._wandb = wandb
        wandb.define_metric("throughput/*", step_metric="throughput/step")

    def log(self, metrics: Metrics, step: int) -> None:
        # A step of its own: the loop may be ahead of a report, and W&B drops rows of earlier steps.
        self._wandb.log({"throughput/step": step, **_plain(metrics)}, commit=False)

    def summary(self, facts: Metrics) -> None:
        self._wandb.config.update({"throughput": without_secrets(_plain(facts))}, allow_val_change=True)

    def close(self) -> None:
        pass

    def how_to_look(self) -> list[str]:
        return []


def _nearby(folder: str) -> str:
    """Relative to where the user is, if that is shorter to type."""
    relative = os.path.relpath(folder)
    return folder if relative.startswith("..") else relative


def default_mode() -> str:
    """``WANDB_MODE`` if set; else online if an account is configured (``WANDB_API_KEY`` or netrc), offline if not."""
    if mode := os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return "online" if netrc.netrc(os.environ.get("NETRC")).authenticators(host) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


_SECRET_WORDS = (
    "api_key",
    "apikey",
    "password",
    "passwd",
    "secret",
    "credential",
    "access_token",
    "auth_token",
    "hf_token",
)


def without_secrets(options: Any) -> Any:
    """The same options, with the values of names that sound like a secret blacked out."""
    if isinstance(options, Mapping):
        return {
            key: "***" if any(word in str(key).lower() for word in _SECRET_WORDS) else without_secrets(value)
            for key, value in options.items()
        }
    if isinstance(options, list):
        return [without_secrets(item) for item in options]
    return options


# ---- from the configuration --------------------------------------------------------------------------------------


def open_trackers(
    logger_config: Any,
    *,
    name: str = "run",
    step: int = 0,
    run_id: Optional[str] = None,
    config: Optional[Mapping[str, Any]] = None,
) -> Trackers:
    """The trackers that ``logger`` of the configuration asks for; one that cannot start is one warning.

    Args:
        logger_config: ``dir``, ``metrics_file``, ``wandb_project`` and the other options of ``logger``.
        name: the run's name where ``wandb_exp_name`` is unset.
        step: the step training starts after: 0, or that of the checkpoint.
        run_id: W&B's id from the checkpoint; None: a new run.
        config: the effective configuration, for W&B.
    """
    trackers: list[Tracker] = []
    if logger_config.metrics_file:
        try:
            trackers.append(JsonlTracker(logger_config.metrics_file, step=step))
        except OSError as error:
            logger.warning(
                "logger.metrics_file=%s cannot be written: %s. Training goes on without it.",
                logger_config.metrics_file,
                error,
            )
    if logger_config.wandb_project:
        run_id = run_id or secrets.token_hex(4)
        try:
            trackers.append(
                WandbTracker(
                    project=logger_config.wandb_project,
                    directory=str(logger_config.dir),
                    run_id=run_id,
                    name=logger_config.wandb_exp_name or name,
                    entity=logger_config.wandb_entity,
                    tags=logger_config.wandb_tags or (),
                    mode=logger_config.wandb_mode,
                    config=config,
                )
            )
        except (ImportError, OSError) as error:
            run_id = None
            logger.warning("W&B cannot start: %s. Training goes on without it; logger.wandb_project=null silences this.", error)
    else:
        run_id = None
    return Trackers(trackers, run_id=run_id)
