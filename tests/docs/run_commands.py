"""Runs lines of `bridge train` one after the other in one process group: torchrun run_commands.py FOLDER LINES."""

from __future__ import annotations

import json
import os
import sys

import torch

from bridge.config import load_recipe
from bridge.training.engine.initialize import prepare_libraries
from bridge.training.loop import train

QUICK = ["train.train_iters=2", "logger.wandb_project=null", "logger.log_interval=1"]


def main(folder: str, lines: str) -> int:
    os.chdir(folder)
    prepare_libraries()
    torch.distributed.init_process_group("gloo")
    for recipe, *overrides in json.loads(lines):
        cfg = load_recipe(recipe, [*overrides, *QUICK])
        if code := train(cfg):
            print(f"bridge train {recipe} {' '.join(overrides)} ended with {code}", file=sys.stderr)
            return code
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
