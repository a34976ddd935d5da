"""``bridge train``: a recipe and overrides, then the training loop."""

from __future__ import annotations

import argparse
import os
import re
from importlib import metadata
from importlib.util import find_spec

from bridge.cli import arguments as options
from bridge.config import Config, load_recipe
from bridge.flops.errors import ConfigError
from bridge.metrics.trackers import check_installed
from bridge.training.job import ending

#: The oldest versions that the training loop runs on. The callback in another loop takes older ones too.
OLDEST = {"torch": "2.6", "megatron-core": "0.16"}

_EXAMPLES = {
    "a small model, on this machine": "bridge train tiny",
    "20 steps on two devices": "torchrun --nproc-per-node 2 -m bridge train tiny train.train_iters=20",
    "a model of your own, with a log point at every step": "bridge train my_recipe.yaml logger.log_interval=1",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "train",
        run,
        "Train a model. Start one process per device, with torchrun for several.",
        _EXAMPLES,
        json=False,
    )
    options.add_model(parser, "a YAML file, or a name from `bridge recipes`")
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors alone (logger.quiet=true)")


def run(arguments: argparse.Namespace) -> int:
    """Errors end as those of the training loop do: every rank of a job finds them, one says so, torchrun quotes it."""
    loaded: list[Config] = []
    code = ending.run(lambda: loaded.append(_load(arguments)), rank=int(os.environ.get("RANK", "0")))
    if code:
        return code
    from bridge.training.loop import train

    return train(loaded[0])


def _load(arguments: argparse.Namespace) -> Config:
    config = load_recipe(arguments.recipe, [*arguments.overrides, *(["logger.quiet=true"] if arguments.quiet else [])])
    for package in OLDEST:
        _check_version(package)
    check_installed(config.logger)
    return config


def _check_version(package: str) -> None:
    """Whether a package is installed and new enough; one without a version, such as a checkout on the path, is accepted."""
    needed = OLDEST[package]
    if find_spec(package.partition("-")[0]) is None:
        raise ConfigError(f"training needs {package} {needed} or newer, but it is not installed; pip install {package}")
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        return
    if _numbers(found) < _numbers(needed):
        raise ConfigError(
            f"training needs {package} {needed} or newer, but {found} is installed; pip install --upgrade {package}"
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]
