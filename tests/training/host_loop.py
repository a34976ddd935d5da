"""A data-parallel loop that is not ours, killed in a step: what it fires is all that its ledger knows.

It evaluates at step 4, saves at step 5 and waits for data between steps; what it does at the end of each step it tells nobody.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from bridge.metrics.host import Host
from bridge.training.callbacks import CallbackContext, ThroughputCallback

STEPS, SAVED, EVALUATED, KILLED = 12, 5, 4, 9
LENGTHS = range(3, 3 + STEPS)
"""Tokens of both ranks' sequence in each step."""
MODEL = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 32, "ffn_hidden_size": 32}
SECONDS = {"data": 0.02, "step": 0.05, "between": 0.03, "evaluation": 0.2, "checkpoint": 0.15}


def loader(first: int) -> Iterator[dict[str, torch.Tensor]]:
    for length in LENGTHS[first:]:
        time.sleep(SECONDS["data"])
        yield {"input_ids": torch.ones(1, length, dtype=torch.long)}


def main(folder: Path) -> None:
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{attempt}", rank=rank, world_size=2)
    saved, step = folder / "saved", 0
    throughput = ThroughputCallback("exact", 10, 1e12, str(folder / "metrics.jsonl"), ledger=str(folder / "life"))
    if saved.exists():
        state = torch.load(saved)
        step = state["step"]
        throughput.load_state_dict(state["totals"])
    context = CallbackContext(state=Host(config=MODEL, step=lambda: step, number_format="fp32"), model=[])
    throughput.on_train_start(context)
    for batch in throughput.observe(loader(step)):
        throughput.on_train_step_start(context)
        time.sleep(SECONDS["step"])
        dist.all_reduce(batch["input_ids"].sum())
        if (rank, attempt, step) == (1, 0, KILLED - 1):
            os.kill(os.getpid(), signal.SIGKILL)
        step += 1
        throughput.on_train_step_end(context)
        if step == EVALUATED:
            throughput.on_eval_start(context)
            time.sleep(SECONDS["evaluation"])
            throughput.on_eval_end(context)
        if step == SAVED:
            throughput.on_checkpoint_save(context)
            time.sleep(SECONDS["checkpoint"])
            if rank == 0:
                torch.save({"step": step, "totals": throughput.state_dict()}, saved)
            dist.barrier()
        time.sleep(SECONDS["between"])
    throughput.on_train_end(context)
    if rank == 1:
        (folder / "ended").write_text(str(time.time()))
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
