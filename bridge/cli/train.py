"""``bridge train``: a recipe and overrides, then the training loop."""

from __future__ import annotations

import argparse

from bridge.config import load_recipe
from bridge.flops.model_shape import ConfigError


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model",
        description="Train a model. Start one process per device: torchrun --nproc-per-node 2 -m bridge train tiny",
    )
    parser.add_argument("recipe", help="a YAML file, or a name from `bridge recipes`")
    parser.add_argument("overrides", nargs="*", metavar="section.option=value", help="overrides, last one wins")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    config = load_recipe(arguments.recipe, arguments.overrides)
    try:
        from bridge.training.loop import train
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "megatron", "numpy"):
            raise
        raise ConfigError(f"training needs {error.name}, which is not installed; pip install 'bridge-flops[train]'") from None
    return train(config)
