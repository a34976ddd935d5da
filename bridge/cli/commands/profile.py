"""``bridge profile``: a few steps of a recipe under torch's profiler, FLOPs and seconds of each module side by side."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bridge.cli import arguments as options
from bridge.cli.console import Output, make_table, print_json
from bridge.config import load_recipe
from bridge.flops import ConfigError
from bridge.flops.conventions import CONVENTIONS
from bridge.text import seconds, significant

#: What a training does beside its steps.
_ONLY_STEPS = """
    train.eval_interval=null train.eval_iters=0 train.rampup_batch_size=null train.skip_iterations=[]
    optimizer.lr_warmup_iters=0 optimizer.lr_decay_iters=null checkpoint.save=null checkpoint.load=null
    checkpoint.save_interval=null checkpoint.pretrained_checkpoint=null logger.metrics_file=null logger.wandb_project=null
    logger.tensorboard_dir=null logger.mlflow_experiment=null logger.trackers=[] logger.log_interval=1
"""
_SHOWN = 10

_EXAMPLES = {
    "three steps of a recipe": "bridge profile tiny",
    "more steps of a finished run's recipe": "bridge profile runs/tiny --steps 10 --out profile",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "profile",
        run,
        "Train a few steps under torch's profiler and compare the time of each module with its FLOPs. Run one process, or "
        "several with torchrun; the first is profiled. Nothing is loaded or saved; the weights are random.",
        _EXAMPLES,
    )
    options.add_model(parser, "a run's folder, a YAML file, or a name from `bridge recipes`", metavar="RUN or recipe")
    parser.add_argument("--steps", type=options.positive, default=3, metavar="N", help="profiled steps (default 3)")
    parser.add_argument(
        "--warm-up", type=options.positive, default=3, metavar="N", help="steps before the profiled ones (default 3)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for the trace and the table (default runs/NAME-profile)"
    )
    parser.add_argument("--convention", default="exact", choices=tuple(CONVENTIONS), help="how to count (default exact)")


def run(arguments: argparse.Namespace) -> int:
    if find_spec("torch") is None or find_spec("megatron") is None:
        raise ConfigError("bridge profile needs torch and megatron-core; pip install 'bridge-flops[train]'")
    from bridge.training.loop import train
    from bridge.training.profile import TABLE, ProfileCallback

    folder = Path(arguments.recipe)
    recipe = folder / "config.yaml" if (folder / "config.yaml").is_file() else folder
    out = arguments.out or Path("runs") / f"{load_recipe(recipe, arguments.overrides, validate=False).name}-profile"
    callback = {
        "_target_": f"{ProfileCallback.__module__}.{ProfileCallback.__name__}",
        "folder": str(out),
        "steps": arguments.steps,
        "warm_up": arguments.warm_up,
        "convention": arguments.convention,
    }
    more = (
        f"train.train_iters={arguments.warm_up + arguments.steps}",
        f"logger.dir={json.dumps(str(out))}",
        f"callbacks={json.dumps([callback])}",
    )
    cfg = load_recipe(recipe, [*arguments.overrides, *_ONLY_STEPS.split(), *more])
    with contextlib.redirect_stdout(sys.stderr):
        code = train(cfg)
    if code == 0 and os.environ.get("RANK", "0") == "0":
        found = json.loads((out / TABLE).read_text())
        print_json(found) if arguments.json else _show(found)
    return code


def _show(found: dict[str, Any]) -> None:
    peak, steps, whole = found["peak_flops"], found["steps"], found["seconds"]
    console = Output()
    console.print(f"{found['device']}, {found['number_format']}; peak: {found['peak_source']}")
    mfu = f", MFU {found['flops'] / found['ranks'] / whole / peak:.1%}" if peak and _is_whole(found) else ""
    console.print(f"{steps} steps of {seconds(whole / steps)}{mfu}; the largest differences from the ideal:\n")
    table = make_table(("",), ("ms per step", "of it", "ideal ms", "TFLOP/s", "of the peak", "forward", "backward"))
    for row in found["rows"][:_SHOWN]:
        table.add_row(row["name"], *_numbers(row, steps, whole, peak))
    rest = whole - sum(row["seconds"] for row in found["rows"])
    table.add_row("(none of these)", significant(1e3 * rest / steps, 3), f"{rest / whole:.1%}")
    console.show(table)
    console.print(f"\n{found['trace']}: open it at https://ui.perfetto.dev; its modules carry their FLOPs")


def _is_whole(found: dict[str, Any]) -> bool:
    """Whether all that was counted ran on this rank, or on those that share its matmuls."""
    return sum(row["flops"] for row in found["rows"]) == found["flops"]


def _numbers(row: dict[str, Any], steps: int, whole: float, peak: float | None) -> list[str]:
    def rate(flops: int, took: float) -> float | None:
        return flops / row["ranks"] / took if flops and took else None

    def share(value: float | None) -> str:
        return "" if value is None or not peak else f"{value / peak:.1%}"

    ideal = "" if row["ideal_seconds"] is None or not row["flops"] else significant(1e3 * row["ideal_seconds"] / steps, 3)
    ways = (rate(row[f"{way}_flops"], row[f"{way}_seconds"]) for way in ("forward", "backward"))
    reached = "" if row["rate"] is None else significant(row["rate"] / 1e12)
    time = (significant(1e3 * row["seconds"] / steps, 3), f"{row['seconds'] / whole:.1%}")
    return [*time, ideal, reached, share(row["rate"]), *map(share, ways)]
