"""The entry to training.  It first checks everything that can be checked without a GPU or another rank.

::

    configuration checked, callbacks made, text read      within a second or two, the same on every rank
    libraries prepared, megatron-core imported
    process groups, seeds
    Run (see bridge.training.run)
    process groups left
"""

from __future__ import annotations

from pathlib import Path

import torch

from bridge.config import list_recipes
from bridge.config.instantiate import instantiate
from bridge.config.schema import Config
from bridge.config.validation import validate, validate_layout
from bridge.data.loader import open_data
from bridge.metrics.observed import waited_seconds
from bridge.training.callbacks import CallbackManager, ProgressCallback
from bridge.training.engine.initialize import Launch, initialize, prepare_libraries, shut_down
from bridge.training.errors import ConfigError, on_this_rank
from bridge.training.job import ending
from bridge.training.job.ledger import JobLedger


def train(cfg: Config) -> int:
    """Train on this rank; returns the exit code (0: done, 1: failed at run time, 2: wrong configuration).

    Call it on every rank of a job that torchrun started, or in a single process.
    """
    launch = Launch.from_environment()
    return ending.run(lambda: _train(cfg, launch), rank=launch.rank)


def _train(cfg: Config, launch: Launch) -> None:
    validate(cfg)
    validate_layout(cfg, launch.world_size)
    callbacks = build_callbacks(cfg)
    _check_folders(cfg)
    data = open_data(cfg)
    prepare_libraries()
    from bridge.training.run import Run, check_trainable  # megatron-core, which needs the preparation

    check_trainable(cfg)
    ledger = JobLedger(Path(cfg.checkpoint.save or cfg.logger.dir) if launch.rank == 0 else None, waited_seconds)
    ledger.remember("imported")
    joins = not torch.distributed.is_initialized()
    groups, device = initialize(cfg, launch)
    ledger.remember("groups")
    with ending.StopSignals() as signals:
        run = Run(cfg, data, callbacks, groups, device, signals, ledger)
        with on_this_rank():
            run.run()
    shut_down(leave=joins)


def build_callbacks(cfg: Config) -> CallbackManager:
    """The callbacks of the recipe, and ``ProgressCallback`` unless the run is quiet or has one.

    Raises:
        ConfigError: a callback cannot be imported, or does not take its arguments.
    """
    callbacks = [instantiate(spec, f"callbacks[{number}]") for number, spec in enumerate(cfg.callbacks)]
    if not cfg.logger.quiet and not any(isinstance(callback, ProgressCallback) for callback in callbacks):
        callbacks.append(ProgressCallback())
    return CallbackManager(callbacks)


def _recipe_of(folder: str) -> str:
    """The recipe whose run keeps its checkpoints in a folder, guessed from the folder's path."""
    name = Path(folder).parent.name
    return name if name in {path.stem for path in list_recipes()} else "RECIPE"


def _check_folders(cfg: Config) -> None:
    """Check the checkpoint folders before the first step, not after the last one."""
    base = cfg.checkpoint.pretrained_checkpoint
    if base is not None and not any(path.name == "state.json" or path.match("step_*") for path in Path(base).glob("s*")):
        raise ConfigError(
            f"checkpoint.pretrained_checkpoint={base!r} holds no checkpoint to fine-tune. Train it first: torchrun "
            f"--nproc-per-node 2 -m bridge train {_recipe_of(base)} checkpoint.save={base}; or name another folder."
        )
    for option, folder in (("checkpoint.save", cfg.checkpoint.save), ("checkpoint.load", cfg.checkpoint.load)):
        if folder is None:
            continue
        path = Path(folder)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{option}={folder!r} is a file. Give a folder.")
        if option == "checkpoint.save":
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{option}={folder!r} cannot be created: {error.strerror}. Give another folder.") from error
