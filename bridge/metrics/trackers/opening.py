"""Opens the trackers that the options of ``logger`` ask for; one row of a table per kind."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from bridge.config.instantiate import find_target, instantiate
from bridge.flops.shapes import ConfigError
from bridge.metrics.trackers.jsonl import JsonlTracker
from bridge.metrics.trackers.mlflow import MlflowTracker
from bridge.metrics.trackers.secrets import without_login
from bridge.metrics.trackers.tensorboard import TensorBoardTracker
from bridge.metrics.trackers.tracker import Tracker, Trackers, first_line
from bridge.metrics.trackers.wandb import AttachedWandb, WandbTracker, open_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a tracker knows about the run; the attributes are the arguments of ``open_trackers``."""

    options: Any
    name: str
    step: int
    run_id: str
    config: Mapping[str, Any] | None


@dataclass(frozen=True)
class TrackerType:
    """A kind of tracker.

    Attributes:
        option: the option of ``logger`` that, if set, asks for it.
        open: opens it.
        package: the package that it imports; None: none.
        install: the arguments of `pip install` that install the package with all that it needs.
    """

    option: str
    open: Callable[[Start], Tracker]
    package: str | None = None
    install: str | None = None


def _wandb(start: Start) -> Tracker:
    if (run := open_run()) is not None:
        return AttachedWandb(run)
    options = start.options
    return WandbTracker(
        project=options.wandb_project,
        directory=str(options.dir),
        run_id=start.run_id,
        name=options.wandb_exp_name or os.environ.get("WANDB_NAME") or start.name,
        entity=options.wandb_entity,
        tags=options.wandb_tags or (),
        mode=options.wandb_mode,
        config=start.config,
    )


def _mlflow(start: Start) -> Tracker:
    options = start.options
    return MlflowTracker(
        experiment=options.mlflow_experiment,
        run_id=start.run_id,
        tracking_uri=options.mlflow_tracking_uri,
        name=options.mlflow_run_name or start.name,
        tags=options.mlflow_tags,
        config=start.config,
    )


KINDS = (
    TrackerType("metrics_file", lambda start: JsonlTracker(start.options.metrics_file, step=start.step)),
    TrackerType("wandb_project", _wandb, "wandb", "wandb"),
    TrackerType(
        "tensorboard_dir",
        lambda start: TensorBoardTracker(start.options.tensorboard_dir, step=start.step, config=start.config),
        "tensorboard",
        "tensorboard",
    ),
    TrackerType("mlflow_experiment", _mlflow, "mlflow", "mlflow-skinny sqlalchemy alembic"),
)


def check_installed(logger_config: Any) -> None:
    """Check, before training, that the packages which ``logger`` needs are installed.

    Raises:
        ConfigError: A package is not installed; the message has the command that installs it.
    """
    for kind in KINDS:
        value = getattr(logger_config, kind.option, None)
        if value and kind.package and not is_installed(kind.package):
            raise ConfigError(
                f"logger.{kind.option}={value} needs {kind.package}, which is not installed; "
                f"pip install {kind.install}, or set logger.{kind.option}=null"
            )
    for number, spec in enumerate(getattr(logger_config, "trackers", ())):
        option = f"logger.trackers[{number}]"
        target, _ = find_target(spec, option)
        package = getattr(target, "package", None)
        if package and not is_installed(package):
            extra = getattr(target, "extra", None)
            install = f"'bridge-flops[{extra}]'" if extra else package
            raise ConfigError(
                f"{option} needs {package}, which is not installed; pip install {install}, or take it out of the list"
            )


def is_installed(package: str) -> bool:
    """Whether a package could be imported, without importing it."""
    try:
        return find_spec(package) is not None
    except (ValueError, ImportError):  # another module has marked it as missing
        return False


def open_trackers(
    logger_config: Any,
    *,
    name: str = "run",
    step: int = 0,
    run_id: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Trackers:
    """Open the trackers that ``logger`` of the configuration asks for; one that cannot start costs a warning.

    Args:
        logger_config: ``dir``, ``metrics_file``, ``wandb_project`` and the other options of ``logger``.
        name: the run's name where ``wandb_exp_name`` or ``mlflow_run_name`` is unset.
        step: the step training starts after: 0, or that of the checkpoint.
        run_id: from the checkpoint; None: a new run.
        config: the effective configuration.
    """
    start = Start(options=logger_config, name=name, step=step, run_id=run_id or secrets.token_hex(4), config=config)
    trackers: list[Tracker] = []
    for kind in KINDS:
        value = getattr(logger_config, kind.option, None)
        if not value:
            continue
        try:
            trackers.append(kind.open(start))
        except (ImportError, OSError) as error:
            logger.warning(
                "logger.%s=%s cannot start: %s. Training continues without it; logger.%s=null silences this.",
                kind.option,
                without_login(str(value)),
                first_line(error),
                kind.option,
            )
    for number, spec in enumerate(getattr(logger_config, "trackers", ())):
        option = f"logger.trackers[{number}]"
        try:
            trackers.append(instantiate(spec, option, start=start))
        except (ImportError, OSError) as error:
            logger.warning("%s cannot start: %s. Training continues without it.", option, first_line(error))
    return Trackers(trackers, run_id=start.run_id if trackers else None)
