"""A run of its own whose W&B service is killed, or stuck, in the middle.

python wandb_fault.py FOLDER kill|stop
"""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from bridge.metrics.trackers import background, open_trackers

logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
folder, how = sys.argv[1:]
background.CLOSE_TIMEOUT = 3.0
options = SimpleNamespace(
    dir=folder,
    metrics_file=f"{folder}/metrics.jsonl",
    wandb_project="bridge-test",
    wandb_entity=None,
    wandb_exp_name=None,
    wandb_mode="offline",
    wandb_tags=[],
)
trackers = open_trackers(options)


def log(steps):
    for step in steps:
        start = time.perf_counter()
        trackers.log({"throughput/total_flops": step, f"row_{step}": 1}, step, commit=True)
        assert time.perf_counter() - start < 1, "logging held the step back"
        time.sleep(0.02)


def services():
    listed = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "wandb" in line]


log(range(1, 11))
while not (found := services()):
    time.sleep(0.05)
while sum(file.read_bytes().count(b"row_10") for file in Path(folder).rglob("*.wandb")) < 2:
    time.sleep(0.05)  # until the tenth row is on the disk, in a summary and a history record
for process in found:
    os.kill(process, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
log(range(11, 31))
start = time.perf_counter()
trackers.close()
assert time.perf_counter() - start < 10
print("trained to the end; services", *found)
