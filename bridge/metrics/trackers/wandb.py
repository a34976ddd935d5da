"""Weights & Biases: our own run, or a run that another loop has started."""

from __future__ import annotations

import logging
import netrc
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from bridge.flops.shapes import ConfigError
from bridge.metrics.keys import PREFIX, STEP, units
from bridge.metrics.trackers.background import BackgroundTracker
from bridge.metrics.trackers.plain import plain
from bridge.metrics.trackers.secrets import without_secrets
from bridge.metrics.trackers.tracker import Metrics, first_line, quietly
from bridge.metrics.why import waterfall

logger = logging.getLogger(__name__)

WATERFALL = "throughput/waterfall"
"""The key of a table with the parts of a mean step."""

#: Seconds after which W&B's server is considered unreachable. Training does not wait for it.
INIT_TIMEOUT = 20.0


class WandbTracker(BackgroundTracker):
    """A W&B run, offline unless an account is configured.

    Integers above 2^53 lose digits in W&B's charts (JSON numbers are doubles there); metrics.jsonl has all of them.

    Args:
        project, entity, name, tags: as in ``wandb.init``.
        directory: where the ``wandb/`` folder goes.
        run_id: continues the run of this id.
        mode: ``online``, ``offline`` or ``disabled``; None: offline unless an account is configured.
        config: the run's options, shown by W&B; secrets are taken out.
    """

    service = "W&B"

    def __init__(
        self,
        *,
        project: str,
        directory: str,
        run_id: str,
        name: str | None = None,
        entity: str | None = None,
        tags: Sequence[str] = (),
        mode: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        import wandb  # here, so that a broken package is this tracker's failure alone

        _quiet_log()
        self._wandb = wandb
        self.mode = mode or default_mode()
        self._arguments = {
            "project": project,
            "dir": directory,
            "id": run_id,
            "name": name,
            "entity": entity,
            "tags": without_secrets(list(tags)) or None,  # None: WANDB_TAGS
            "config": without_secrets(plain(config or {})),
        }
        self._run: Any = None
        self._folder = os.path.join(directory, "wandb")
        os.makedirs(directory, exist_ok=True)
        super().__init__()

    def log(self, metrics: Metrics, step: int) -> None:
        row = {STEP: step, **plain(metrics)}
        # Without `commit` W&B would hold the newest row back until the next one; a kill would lose it.
        self._put(lambda: self._run.log(row, step=step, commit=True))

    def summary(self, facts: Metrics) -> None:
        texts = without_secrets(plain(facts))
        self._put(lambda: self._run.summary.update(texts))
        if parts := waterfall([facts]):
            whole = sum(parts.values()) or 1.0
            rows = [[name, seconds, seconds / whole] for name, seconds in parts.items()]
            self._put(lambda: self._run.log({WATERFALL: self._wandb.Table(["part", "s/step", "fraction"], rows)}))

    def how_to_look(self) -> list[str]:
        self._wait_until_opened()
        run = self._run
        if run is None or self.mode == "disabled":
            return []
        if self.mode == "online":
            return [f"W&B: {run.url}"]
        folder = shlex.quote(_nearby(run.settings.sync_dir))
        return [f"W&B, here: wandb leet {folder}", f"W&B, in the browser: wandb sync {folder}"]

    # In the tracker's own thread.

    def _open(self) -> None:
        try:
            self._run = self._init(self.mode)
        except Exception as error:
            if self.mode != "online":
                raise
            logger.warning("W&B cannot be reached (%s); this run is kept offline.", first_line(error))
            self.mode = "offline"
            quietly(self._wandb.teardown)  # the run's id is taken by the failed start
            self._run = self._init(self.mode)
        define_metrics(self._run, STEP)
        self._run.config.update({"units": units()}, allow_val_change=True)

    def _init(self, mode: Any) -> Any:
        settings = self._wandb.Settings(
            console="off",  # the console belongs to the progress line
            silent=True,
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT)),
            x_transaction_log_flush_interval=0.2,  # seconds that a kill can lose; the default is 15
        )
        return self._wandb.init(mode=mode, resume="allow", settings=settings, **self._arguments)

    def _finish(self) -> None:
        self._run.finish()

    def _release(self) -> None:
        # Removes W&B's exit hook, which would wait for, or fail at, a service that has ended.
        self._wandb.teardown()

    def _undelivered(self) -> str:
        return f"; its files are in {self._folder}"


def _quiet_log() -> None:
    """If W&B cannot write its log beside its files, Python must not print a traceback for each line."""
    log = logging.getLogger("wandb")
    add = type(log).addHandler

    def add_quietly(hdlr: logging.Handler) -> None:
        hdlr.handleError = lambda record: None  # type: ignore[method-assign]
        add(log, hdlr)

    log.addHandler = add_quietly  # type: ignore[method-assign]


def attached(wandb: Any) -> list[AttachedWandb]:
    """The tracker for a run that the host opened; empty if there is no run.

    Args:
        wandb: what the loop provides: the run, the module, or None.
    """
    run = getattr(wandb, "run", wandb)
    return [AttachedWandb(run)] if run else []


class AttachedWandb:
    """A W&B run of the host: rows are added under ``bridge/``, and the run is neither started nor finished here.

    Args:
        run: the W&B run.
    """

    STEP = PREFIX + STEP
    """A separate step, because the loop may be ahead of a report, and W&B drops rows of earlier steps."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._logged_at: int | None = None
        define_metrics(self._run, self.STEP, groups=(PREFIX + "*",))

    def log(self, metrics: Metrics, step: int) -> None:
        """Add our keys to the row that the loop will commit; if it has not committed the last one, commit that first."""
        if self._logged_at is not None and self._run.step == self._logged_at:
            self._run.log({}, commit=True)
        self._run.log(among_others(metrics, step), commit=False)
        self._logged_at = self._run.step

    def summary(self, facts: Metrics) -> None:
        """Write results and constants.

        Raises:
            ConfigError: The run has numbers of another convention.
        """
        mine, theirs = facts.get("convention"), self._run.summary.get(PREFIX + "convention")
        if mine is not None and theirs not in (None, mine):
            raise ConfigError(
                f"this W&B run has numbers of convention {theirs!r}, and those of {mine!r} cannot have the same keys; "
                "start another run"
            )
        self._run.summary.update(_ours(facts))

    def close(self) -> None:
        """The run continues; W&B writes the last row when it ends."""

    def how_to_look(self) -> list[str]:
        return []


def among_others(metrics: Metrics, step: int) -> dict[str, Any]:
    """One of our rows as it appears in a run of the host."""
    return {AttachedWandb.STEP: step, **_ours(metrics)}


def _ours(values: Metrics) -> dict[str, Any]:
    return {PREFIX + name: value for name, value in without_secrets(plain(values)).items()}


def open_run() -> Any:
    """The W&B run that is open in this process (from a notebook or an agent); None if there is none."""
    return getattr(sys.modules.get("wandb"), "run", None)


def define_metrics(run: Any, step: str, groups: Sequence[str] = ("*",)) -> None:
    """Draw charts over the steps of training, and no chart of the steps themselves."""
    run.define_metric(step, hidden=True)
    for group in groups:
        run.define_metric(group, step_metric=step)


def _nearby(folder: str) -> str:
    """The path relative to the current folder if it is inside it."""
    relative = os.path.relpath(folder)
    return folder if relative.startswith("..") else relative


def default_mode() -> str:
    """``WANDB_MODE`` if set; else online if an account is configured (``WANDB_API_KEY`` or netrc), offline if not."""
    if mode := os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(mode, mode)
    return "online" if has_account() else "offline"


def has_account() -> bool:
    """Whether there is a login for W&B's server: ``WANDB_API_KEY``, or a line in netrc, which ``wandb login`` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return bool(netrc.netrc(os.environ.get("NETRC")).authenticators(host))
    except (OSError, netrc.NetrcParseError):
        return False
