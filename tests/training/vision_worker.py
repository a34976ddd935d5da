"""Runs all vision-language trainings in one process group of two ranks: torchrun vision_worker.py FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from vision_cases import CONTINUED, FORK, FROZEN, LAYOUTS, MODELS, config
from worker import run

from bridge.training.callbacks import Callback, CallbackContext
from bridge.training.engine.initialize import prepare_libraries
from bridge.training.job import ending


class Weights(Callback):
    """Which weights a training moved."""

    moved: dict[str, bool] = {}
    before: dict[str, torch.Tensor] = {}

    def on_train_start(self, context: CallbackContext) -> None:
        Weights.before = {name: value.detach().clone() for name, value in self.weights(context)}

    def on_train_end(self, context: CallbackContext) -> None:
        Weights.moved = {name: not torch.equal(value, Weights.before[name]) for name, value in self.weights(context)}

    @staticmethod
    def weights(context: CallbackContext) -> list[tuple[str, torch.Tensor]]:
        return list(context.model[0].module.named_parameters())


def main(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for model in MODELS:
        here = folder / model
        saves = (f"checkpoint.save={here}/checkpoints", f"checkpoint.save_interval={FORK}")
        results[model] = run(config(str(here), model, *saves), here)
        results[model]["moved"] = Weights.moved
    for name in CONTINUED:
        model, layout = name.split("/")
        fork = folder / model / "checkpoints" / f"step_{FORK:07d}"
        here = folder / "continued" / name
        results[name] = run(config(str(here), model, *LAYOUTS[layout], f"checkpoint.load={fork}"), here)
    here = folder / "overlapped"
    results["overlapped"] = run(config(str(here), "table", *LAYOUTS["overlapped"]), here)
    for name, (switches, layout, _) in FROZEN.items():
        here = folder / "frozen" / name
        options = (*LAYOUTS[layout], *(f"model.{switch}=true" for switch in switches))
        results[f"frozen/{name}"] = run(config(str(here), "deep", *options), here)
        results[f"frozen/{name}"]["moved"] = Weights.moved
    return results


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.modules.setdefault("vision_worker", sys.modules["__main__"])  # the callback above, by the name in `_target_`
    ending.LINGER_S = 0.0  # all ranks outlive an error here
    prepare_libraries()
    torch.distributed.init_process_group("gloo")
    found = main(folder)
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
