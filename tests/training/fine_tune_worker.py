"""Runs fine-tunings in one process group, for test_fine_tune.py: torchrun fine_tune_worker.py FOLDER."""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import worker
from megatron.core.utils import unwrap_model
from torch.distributed.checkpoint import FileSystemReader

from bridge.config.schema import Config
from bridge.data.instructions import pack_instructions
from bridge.data.packed.content import write_rows
from bridge.training.callbacks import Callback, CallbackContext
from bridge.training.engine.initialize import prepare_libraries
from bridge.training.errors import RunError
from bridge.training.job import ending

PRETRAINED = 16
STEPS, FORK, ROWS, BATCH = 8, 4, 16, 4
"""Two epochs: the second one begins at the fork."""
SIZES = ("model.seq_length=160", "optimizer.lr_decay_iters=8")
LORA = "peft={kind: lora, dim: 4, alpha: 16, target_modules: [linear_qkv, linear_proj, linear_fc1, linear_fc2, output_layer]}"
TP2, PP2 = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
DISTRIBUTED = (
    "optimizer.use_distributed_optimizer=true",
    "optimizer.overlap_grad_reduce=true",
    "optimizer.overlap_param_gather=true",
)
VARIANTS = {
    "some_layers": LORA.replace(
        "[linear_qkv, linear_proj, linear_fc1, linear_fc2, output_layer]", '["*.layers.[23].*.linear_fc1"]'
    ),
    "dora": LORA.replace("lora", "dora"),
    "frozen_parts": "peft={kind: freeze, freeze: [embedding, linear_qkv, linear_fc1]}",
}


class Weights(Callback):
    """Checksums of what a fine-tuning must not change, at the start and at the end."""

    seen: list[dict[str, int]] = []

    def on_train_start(self, context: CallbackContext) -> None:
        Weights.seen = [checksums(context.model)]

    def on_train_end(self, context: CallbackContext) -> None:
        Weights.seen.append(checksums(context.model))


class Dies(Callback):
    """Ends the run with an error in the middle of nowhere."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_step_end(self, context: CallbackContext) -> None:
        if context.state.step == self.step:
            raise RunError("died", shared=True)


def checksums(model: Sequence[Any]) -> dict[str, int]:
    parameters = (named for chunk in unwrap_model(model) for named in chunk.named_parameters())
    return {name: zlib.crc32(p.detach().numpy().tobytes()) for name, p in parameters if ".adapter." not in name}


def fine_tuning(folder: Path, here: Path, *overrides: str, base: str = "base", adapters: str = LORA) -> Config:
    specs = f"{{packed_train_data_path: {folder}/training.npy, packed_val_data_path: {folder}/validation.parquet}}"
    data = ("data.kind=instructions", f"data.packed_sequence_specs={specs}")
    common = (f"train.train_iters={STEPS}", "train.eval_interval=4", "train.eval_iters=1", adapters, "optimizer.lr=2e-2")
    cfg = worker.config(here, "dense", "packed", *SIZES, *common, *data,
                        f"checkpoint.pretrained_checkpoint={folder}/{base}", *overrides)  # fmt: skip
    cfg.callbacks.append({"_target_": "fine_tune_worker.Weights"})
    return cfg


def run(cfg: Config, here: Path) -> dict[str, Any]:
    Weights.seen = []
    lines = here / "metrics.jsonl"
    return {
        **worker.run(cfg, here),
        "weights": Weights.seen,
        "log": [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else [],
    }


def stored(path: Path) -> dict[str, Any]:
    """The tensors of a checkpoint, and the bytes its files take."""
    keys = FileSystemReader(str(path)).read_metadata().state_dict_metadata
    return {"keys": sorted(map(str, keys)), "bytes": sum(file.stat().st_size for file in path.glob("*.distcp"))}


def pretrained(folder: Path, name: str, *overrides: str) -> dict[str, Any]:
    here = folder / f"{name}_run"
    options = (f"train.train_iters={PRETRAINED}", f"checkpoint.save={folder}/{name}", *overrides)
    cfg = worker.config(here, "dense", "packed", "model.seq_length=160", *options)
    cfg.callbacks.append({"_target_": "fine_tune_worker.Weights"})
    return run(cfg, here)


def main(folder: Path) -> dict[str, Any]:
    first = torch.distributed.get_rank() == 0
    if first:
        cfg = worker.config(folder, "dense", "packed", "model.seq_length=160", "data.kind=instructions",
                            "data.max_documents=300", "data.eval_fraction=0.2")  # fmt: skip
        training, validation = pack_instructions(cfg)
        write_rows(folder / "training.npy", training[:ROWS])
        write_rows(folder / "validation.parquet", validation)
    torch.distributed.barrier()
    step = f"step_{PRETRAINED:07d}"
    results = {"base": pretrained(folder, "base"), "other": pretrained(folder, "other", "train.train_iters=1")}
    if first:
        (folder / "other" / "step_0000001").rename(folder / "other" / step)

    def tune(name: str, *overrides: str, dies: int = 0, **options: str) -> None:
        cfg = fine_tuning(folder, folder / name, *overrides, **options)
        if dies:
            cfg.callbacks.append({"_target_": "fine_tune_worker.Dies", "step": dies})
        results[name] = run(cfg, folder / name)

    def saved(name: str) -> str:
        return f"{folder}/{name}/saved/step_{FORK:07d}"

    def whole(name: str, *overrides: str, adapters: str = LORA) -> None:
        """A run from the base to its end, with a checkpoint in the middle."""
        saves = (f"checkpoint.save={folder}/{name}/saved", f"checkpoint.save_interval={FORK}")
        tune(name, *overrides, *saves, adapters=adapters)
        results[f"{name}_saved"] = stored(Path(saved(name)))

    if first:
        shutil.copytree(folder / "base", folder / "moved")
        shutil.copytree(folder / "base", folder / "damaged")
        worker.flip(folder / "damaged" / step / "__0_0.distcp")
        (folder / "empty").mkdir()
    torch.distributed.barrier()

    whole("lora")
    dies = (f"checkpoint.save={folder}/died/saved", f"checkpoint.save_interval={FORK}")
    tune("died", *dies, dies=FORK + 2)
    tune("started_again", *dies, f"checkpoint.load={folder}/died/saved")
    fork = f"checkpoint.load={saved('lora')}"
    tune("tp2", TP2, fork, base="moved")
    tune("pp2", PP2, fork)
    whole("distributed", *DISTRIBUTED)
    tune("distributed_tp2", *DISTRIBUTED, TP2, f"checkpoint.load={saved('distributed')}")
    for name, adapters in VARIANTS.items():
        whole(name, adapters=adapters)
        if name != "frozen_parts":
            tune(f"{name}_resumed", f"checkpoint.load={saved(name)}", adapters=adapters)

    # What may happen to a base between two starts.
    tune("base_other", fork, base="other")
    tune("base_damaged", fork, base="damaged")
    tune("base_empty", base="empty")
    tune("base_nowhere", base="nowhere")
    if first:
        (folder / "base").rename(folder / "hidden")
        (folder / "new" / "step_0000001").mkdir(parents=True)
    torch.distributed.barrier()
    tune("base_gone", fork, base="new")
    if first:
        (folder / "hidden").rename(folder / "base")
    torch.distributed.barrier()
    tune("without_base", fork, "checkpoint.pretrained_checkpoint=null")
    tune("with_all_weights", f"checkpoint.load={folder}/base")
    return results


if __name__ == "__main__":
    sys.modules["fine_tune_worker"] = sys.modules["__main__"]  # the callbacks above, by the name in `_target_`
    ending.LINGER_S = 0.0  # all ranks outlive an error here
    prepare_libraries()
    torch.distributed.init_process_group("gloo")
    found = main(Path(sys.argv[1]))
    if torch.distributed.get_rank() == 0:
        (Path(sys.argv[1]) / "results.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
