"""Two rows on their way to a tracker of the list."""

from __future__ import annotations

from pathlib import Path

from bridge.config.schema import LoggerConfig
from bridge.metrics.trackers import Trackers, open_trackers

ROWS = {
    10: {"throughput/mfu": 0.25, "throughput/step_time": 0.5, "throughput/flops/mlp": 3.0, "lm loss": 2.5, "text": "none"},
    20: {"throughput/mfu": 0.5, "throughput/step_time": 0.25, "throughput/flops/mlp": 4.0, "lm loss": 1.5},
}
TRACKERS = "bridge.metrics.trackers"


def options(folder: Path, target: str, **arguments) -> LoggerConfig:
    spec = {"_target_": f"{TRACKERS}.{target}", **arguments}
    return LoggerConfig(dir=str(folder), metrics_file=None, wandb_project=None, trackers=[spec])


def send(options: LoggerConfig) -> Trackers:
    trackers = open_trackers(options, name="tiny", config={"model": {"num_layers": 2}, "api_key": "k"})
    trackers.summary({"device": "X", "parameters": {"total": 5}})
    for step, row in ROWS.items():
        trackers.log(row, step, commit=True)
    return trackers
