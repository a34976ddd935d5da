"""Runs many trainings in one process group, for the tests beside it: torchrun worker.py SCENARIO FOLDER.

Each scenario is a function below; what it returns on the first rank goes to FOLDER/SCENARIO.json.  The trainings are
real ones, through :func:`bridge.training.loop.train`, on a model small enough for milliseconds a step.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from worker_cases import FORK, LAYOUTS, MODELS, MORE_ON_TWO_RANKS, ON_FOUR_RANKS, ON_TWO_RANKS, REFERENCES, STEPS

from bridge.config import with_overrides
from bridge.config.schema import CheckpointConfig, Config, DataConfig, LoggerConfig, ModelConfig, OptimizerConfig, TrainConfig
from bridge.training.callbacks import Callback, CallbackContext
from bridge.training.callbacks.throughput import FACTS
from bridge.training.engine.initialize import prepare_libraries, shut_down
from bridge.training.job import ending
from bridge.training.job.agree import gather
from bridge.training.loop import train
from bridge.training.step import LOSS


class Recorder(Callback):
    """Losses and gradient norms by step, of the training that runs; evaluations; what its model said of its plan."""

    verified: tuple[Any, ...] = ()
    rows: dict[int, tuple[float, float]] = {}
    evaluations: dict[int, float] = {}
    tokens: list[int] = []

    def on_train_start(self, context: CallbackContext) -> None:
        Recorder.rows, Recorder.evaluations = {}, {}
        facts = context.user_state.get(FACTS, {})
        Recorder.verified = facts.get("verified"), facts.get("verified_details")

    def on_train_step_end(self, context: CallbackContext) -> None:
        loss = context.loss_dict[LOSS].item() if context.loss_dict else float("nan")
        Recorder.rows[context.state.step] = (loss, context.grad_norm or 0.0)

    def on_eval_end(self, context: CallbackContext) -> None:
        Recorder.evaluations[context.state.step] = context.total_loss_dict[LOSS].item()


class SignalAt(Callback):
    """Sends this process a signal when a step ends, on one rank."""

    def __init__(self, step: int, number: int, rank: int = 0) -> None:
        self.step, self.number, self.rank = step, number, rank

    def on_train_step_end(self, context: CallbackContext) -> None:
        if context.state.step == self.step and context.state.groups.rank == self.rank:
            os.kill(os.getpid(), self.number)


class FullDisk(Callback):
    """From a step on this rank can write no file larger than a few bytes, as on a full disk."""

    def __init__(self, step: int, rank: int, limit: int = 64) -> None:
        self.step, self.rank, self.limit = step, rank, limit

    def on_checkpoint_save(self, context: CallbackContext) -> None:
        if context.state.step >= self.step and context.state.groups.rank == self.rank:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))


def config(folder: Path, model: str = "dense", batching: str = "padded", *overrides: str) -> Config:
    """A training of a few steps; one sample a micro-batch, so that no layout pads what another one does not."""
    base = Config(
        name="test",
        model=ModelConfig(
            **{
                "num_layers": 4,
                "hidden_size": 32,
                "ffn_hidden_size": 80,
                "num_attention_heads": 4,
                "num_query_groups": 2,
                "gated_linear_unit": True,
                "vocab_size": 512,
                "seq_length": 64,
                **MODELS[model],
            }
        ),
        train=TrainConfig(train_iters=4, global_batch_size=4, micro_batch_size=1),
        data=DataConfig(batching=batching, document_separator="\n", max_documents=1500),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(lr=1e-2, min_lr=1e-3),
        logger=LoggerConfig(log_interval=1, dir=str(folder), metrics_file=str(folder / "metrics.jsonl"), wandb_project=None),
        checkpoint=CheckpointConfig(),
        callbacks=[
            {"_target_": "bridge.training.callbacks.ThroughputCallback", "convention": "exact", "peak_flops": 1e12},
            {"_target_": "worker.Recorder"},
        ],
    )
    return with_overrides(base, overrides)


def run(cfg: Config, folder: Path) -> dict[str, Any]:
    """Train; what came of it: exit code, console, losses and norms by step, totals."""
    folder.mkdir(parents=True, exist_ok=True)
    Recorder.rows, Recorder.evaluations = {}, {}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with io.StringIO() as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = train(cfg)
        console = out.getvalue()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()  # groups end, and their polling threads, with what last refers to them: the model
    if code:
        shut_down(leave=False)  # what a failed training leaves set up in a process that goes on; a real one ends
    torch.distributed.barrier()
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    last = json.loads(lines[-1]) if lines else {}
    return {
        "code": code,
        "console": console,
        "verified": Recorder.verified,
        "rows": {str(step): row for step, row in Recorder.rows.items()},
        "evaluations": {str(step): loss for step, loss in Recorder.evaluations.items()},
        "total_flops": last.get("throughput/total_flops"),
        "total_tokens": last.get("throughput/total_tokens"),
    }


def names(checkpoints: Path) -> list[str]:
    """Checkpoints and the pointer to one, without the job's ledger beside them."""
    return sorted(name for name in os.listdir(checkpoints) if not name.startswith(("job.", ".")))


# ---- scenarios ------------------------------------------------------------------------------------------------------


def references(folder: Path) -> dict[str, Any]:
    """One rank: the unbroken runs, each with a checkpoint at the fork."""
    results = {}
    for name in REFERENCES:
        model, batching = name.split("/")
        here = folder / "references" / name
        cfg = config(here, model, batching, f"checkpoint.save={here}/checkpoints", f"checkpoint.save_interval={FORK}",
                     f"train.train_iters={STEPS}")  # fmt: skip
        results[name] = run(cfg, here)
    return results


def layouts(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Several ranks: the same runs from the fork on, cut in other ways."""
    results = {}
    for name in names:
        model, batching, layout = name.split("/")
        fork = folder / "references" / model / batching / "checkpoints" / f"step_{FORK:07d}"
        here = folder / "layouts" / name
        options = (*LAYOUTS[layout], f"checkpoint.load={fork}", f"train.train_iters={STEPS}")
        results[name] = run(config(here, model, batching, *options), here)
    return results


def two(folder: Path) -> dict[str, Any]:
    return layouts(folder, ON_TWO_RANKS)


def more_on_two(folder: Path) -> dict[str, Any]:
    return layouts(folder, MORE_ON_TWO_RANKS)


def four(folder: Path) -> dict[str, Any]:
    return layouts(folder, ON_FOUR_RANKS)


def packing(folder: Path) -> dict[str, Any]:
    """One rank, fixed weights: a packed batch against its documents one by one."""
    results = {}
    frozen = ("optimizer.lr=0", "optimizer.min_lr=0", "optimizer.weight_decay=0", "train.train_iters=1",
              "model.seq_length=256", "model.moe_aux_loss_coeff=0")  # fmt: skip
    for model in ("dense", "mla", "window", "moe"):
        here = folder / "packing" / model
        packed = config(here / "packed", model, "packed", *frozen, "train.global_batch_size=4")
        results[f"{model}/packed"] = run(packed, here / "packed")
        # A pack holds what the same documents, in the same order, are one by one.
        documents = count_documents(packed, packs=4)
        single = config(here / "single", model, "padded", *frozen, f"train.global_batch_size={documents}")
        results[f"{model}/single"] = run(single, here / "single")
    return results


def count_documents(cfg: Config, packs: int) -> int:
    from bridge.data.loader import TextData

    data = TextData(cfg)
    return sum(len(data.training[index]) for index in range(packs))


#: All that makes a resume hard.
RESUMED = (
    "train.train_iters=8",
    "train.global_batch_size=8",
    "train.rampup_batch_size=[4,4,12]",
    "train.skip_iterations=[2,7]",
    "train.eval_interval=3",
    "train.eval_iters=1",
    "model.hidden_dropout=0.1",
    "model.attention_dropout=0.1",
    "data.num_workers=1",
    "optimizer.lr_warmup_iters=2",
)
DISTRIBUTED = (
    "optimizer.use_distributed_optimizer=true",
    "optimizer.overlap_grad_reduce=true",
    "optimizer.overlap_param_gather=true",
)


def resumed(here: Path, *options: str) -> dict[str, Any]:
    """Two ranks: unbroken, broken off by a signal, continued."""
    results: dict[str, Any] = {}
    options = (*RESUMED, *options)
    saves = f"checkpoint.save={here}/checkpoints"
    results["unbroken"] = run(config(here / "a", "dense", "packed", *options), here / "a")
    first = config(here / "b", "dense", "packed", *options, saves, "checkpoint.save_interval=2", "checkpoint.keep=2")
    first.callbacks.append({"_target_": "worker.SignalAt", "step": 4, "number": int(signal.SIGTERM), "rank": 1})
    results["stopped"] = run(first, here / "b")
    results["saved"] = {"names": names(here / "checkpoints")}
    again = config(here / "b", "dense", "packed", *options, saves, f"checkpoint.load={here}/checkpoints")
    results["continued"] = run(again, here / "b")
    return results


def plain(folder: Path) -> dict[str, Any]:
    return resumed(folder / "resume" / "plain")


def distributed(folder: Path) -> dict[str, Any]:
    """The distributed optimizer's state is cut for two replicas; it continues on a tensor-parallel pair too."""
    here = folder / "resume" / "distributed"
    results = resumed(here, *DISTRIBUTED)
    options = (*RESUMED, "model.hidden_dropout=0", "model.attention_dropout=0", "optimizer.use_distributed_optimizer=true",
               f"checkpoint.load={here}/checkpoints/step_0000004")  # fmt: skip
    for name, layout in (("moved", ("parallel.tensor_model_parallel_size=2",)), ("stays", ())):
        results[name] = run(config(here / name, "dense", "packed", *options, *layout), here / name)
    return results


def full_disks(folder: Path) -> dict[str, Any]:
    """Two ranks, of which one can write no more."""
    results: dict[str, Any] = {}
    for case, failing, limit in (("first", 0, 64), ("last", 1, 64), ("weights", 0, 30000)):
        here = folder / "faults" / f"full_{case}"
        cfg = config(here, "dense", "padded", f"checkpoint.save={here}/checkpoints", "checkpoint.save_interval=2",
                     "logger.metrics_file=null")  # fmt: skip
        cfg.callbacks.append({"_target_": "worker.FullDisk", "step": 4, "rank": failing, "limit": limit})
        result = run(cfg, here)
        outcomes = gather((result["code"], result["console"]))
        again = run(config(here / "again", "dense", "padded", f"checkpoint.load={here}/checkpoints"), here / "again")
        results[case] = {"names": names(here / "checkpoints"), "outcomes": outcomes, "again": again}
    return results


def saved(folder: Path, name: str) -> Path:
    """Checkpoints of steps 2 and 4 of a run of four."""
    here = folder / "faults" / name
    run(config(here, "dense", "padded", f"checkpoint.save={here}/checkpoints", "checkpoint.save_interval=2"), here)
    return here / "checkpoints"


def damaged(folder: Path, good: Path, names: Iterable[str]) -> dict[str, Any]:
    """Two ranks: what a run does whose checkpoints are damaged."""
    results = {}
    for case in names:
        here = folder / "faults" / case
        if torch.distributed.get_rank() == 0:
            shutil.copytree(good, here / "checkpoints", dirs_exist_ok=True)
            DAMAGES[case](here / "checkpoints")
        torch.distributed.barrier()
        results[case] = run(config(here, "dense", "padded", "train.train_iters=5", f"checkpoint.load={here}/checkpoints"), here)
    return results


def one_damaged(folder: Path) -> dict[str, Any]:
    return damaged(folder, saved(folder, "whole"), [name for name in DAMAGES if name not in UNUSABLE])


def faults(folder: Path) -> dict[str, Any]:
    """Two ranks: checkpoints that cannot be found, none that is whole, and those of something else."""
    good = saved(folder, "good")
    results, load = damaged(folder, good, UNUSABLE), f"checkpoint.load={good}"
    for case, *options in (
        ("other_model", "model.hidden_size=64"),
        ("other_text", "data.max_documents=1000", "train.train_iters=5", "logger.quiet=true"),
        ("finished",),
    ):
        here = folder / "faults" / case
        results[case] = run(config(here, "dense", "padded", load, *options), here)
    return results


def truncate(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def damage_all(folder: Path) -> None:
    for step in (2, 4):
        (folder / f"step_{step:07d}" / "state.json").write_text("{")


DAMAGES = {
    "truncated": lambda folder: truncate(folder / "step_0000004" / "__1_0.distcp"),
    "flipped": lambda folder: flip(folder / "step_0000004" / "__0_0.distcp"),
    "missing": lambda folder: (folder / "step_0000004" / "common.pt").unlink(),
    "state": lambda folder: flip(folder / "step_0000004" / "state.json"),
    "pointer": lambda folder: (folder / "latest").write_bytes(b"\xff\xfe nonsense"),
    "pointer_gone": lambda folder: (folder / "latest").unlink(),
    "unfinished": lambda folder: (folder / "step_0000004").rename(folder / ".step_0000004.partial"),
    "all": damage_all,
}
UNUSABLE = ("pointer", "pointer_gone", "all")


if __name__ == "__main__":
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    sys.modules.setdefault("worker", sys.modules["__main__"])  # the callbacks above, by the name in `_target_`
    ending.LINGER_S = 0.0  # all ranks outlive an error here
    prepare_libraries()
    torch.distributed.init_process_group("gloo")
    found = globals()[scenario](folder)
    if torch.distributed.get_rank() == 0:
        (folder / f"{scenario}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
