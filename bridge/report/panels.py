"""The panels of dashboards and reports: which keys share a chart, and the question that each section answers.

Units come from :mod:`bridge.metrics.keys`.  The report, W&B and Grafana only add how they draw.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bridge.metrics.keys import KEYS, Key

Kind = Literal["lines", "points", "stacked", "shares", "heat"]
_BY_NAME = {key.name: key for key in KEYS}
_WORDS = {"mfu": "MFU", "hfu": "HFU", "lm loss": "training", "lm loss validation": "held-out text"}


@dataclass(frozen=True)
class Panel:
    """One chart over the steps of training.

    Attributes:
        title: its title.
        names: declared keys, or families of keys, that share a unit.
        kind: ``lines``; ``points``, where values are not connected; ``stacked``, for parts that add up; ``shares``, for parts
            as fractions of their sum; ``heat``: one row of cells per key, darker for larger values.
        least: where the value axis begins, unless a value is lower; None: at the smallest value.
        plan: the fact of the run that holds the planned final value, drawn as a line.
    """

    title: str
    names: tuple[str, ...]
    kind: Kind = "lines"
    least: float | None = 0.0
    plan: str | None = None

    @property
    def keys(self) -> list[Key]:
        """The declarations of the keys."""
        return [_BY_NAME[name] for name in self.names]

    @property
    def adds_up(self) -> bool:
        """Whether its series are parts of a whole."""
        return self.kind in ("stacked", "shares")

    @property
    def unit(self) -> str:
        """The unit of the logged values."""
        return self.keys[0].unit

    def matching(self, logged: Iterable[str]) -> dict[str, str]:
        """The logged keys that the panel shows -> their labels."""
        there = list(logged)
        return {name: _label(key, name) for key in self.keys for name in key.matching(there)}


@dataclass(frozen=True)
class Section:
    """Panels that answer one question."""

    title: str
    question: str
    panels: tuple[Panel, ...]


SECTIONS = (
    Section(
        "Throughput and utilization",
        "How fast is a device, and what fraction of its peak is that?",
        (
            Panel(
                "FLOP/s per device",
                (*(f"throughput/tflops/device{suffix}" for suffix in ("", "_nominal", "_6nd")), "host/tflops/device"),
            ),
            Panel("Utilization of the peak", ("throughput/mfu", "throughput/hfu")),
            Panel("Tokens per second", ("throughput/tokens_per_sec", "throughput/device/tokens_per_sec")),
            Panel(
                "Time of a step",
                ("throughput/step_time", "throughput/step_time/median", "throughput/step_time/p95", "host/step_time"),
            ),
        ),
    ),
    Section(
        "The parts of a step",
        "Do they change over the run?",
        (
            Panel("Step time by part", ("throughput/time/<part>",), "stacked"),
            Panel("Share of the parts", ("throughput/time/<part>",), "shares"),
        ),
    ),
    Section(
        "Where the work goes",
        "Which parts of the model are the FLOPs spent on?",
        (
            Panel("Work of a log interval by component", ("throughput/flops/<component>",), "stacked"),
            Panel("Share of the components", ("throughput/flops/<component>",), "shares"),
        ),
    ),
    Section(
        "Padding and data wait",
        "Which computation and waiting is wasted?",
        (
            Panel("Padding and data wait", ("throughput/padding_fraction", "throughput/data_wait_fraction")),
            Panel("Assignments that experts dropped", ("throughput/dropped_tokens_fraction",)),
        ),
    ),
    Section(
        "Balance",
        "Do some ranks wait for others, and why?",
        (
            Panel("Max/mean work", ("throughput/imbalance/data_parallel", "throughput/imbalance/pipeline"), least=1.0),
            Panel(
                "Slowest rank over the mean, and the cause",
                ("throughput/imbalance/compute", "throughput/imbalance/work", "throughput/imbalance/device"),
                least=1.0,
            ),
            Panel(
                "Max/mean tokens of the experts", ("throughput/imbalance/experts", "throughput/imbalance/expert_ranks"), least=1.0
            ),
            Panel("Fullest expert of each layer", ("throughput/imbalance/experts/layer_<number>",), "heat", 1.0),
            Panel("Compute time of a step", ("throughput/compute_time/max", "throughput/compute_time/mean")),
            Panel("Which rank is the slowest", ("throughput/compute_time/slowest_rank",), "points"),
        ),
    ),
    Section(
        "Totals and budget",
        "How much of the plan is done?",
        (
            Panel("FLOPs so far", ("throughput/total_flops",), plan="planned_flops"),
            Panel("Tokens so far", ("throughput/total_tokens",)),
        ),
    ),
    Section(
        "Energy",
        "What does a FLOP cost?",
        (
            Panel("Power per device", ("throughput/power",)),
            Panel("FLOPs per joule", ("throughput/flops_per_joule",)),
        ),
    ),
    Section(
        "Training",
        "Does it learn?",
        (
            Panel("Loss", ("lm loss", "lm loss validation"), least=None),
            Panel("Gradient norm", ("grad-norm",)),
        ),
    ),
)


def _label(key: Key, logged: str) -> str:
    """The label of a key: ``mlp`` for ``throughput/flops/mlp`` of a family, else its own label or its last part."""
    if key.prefix is not None:
        return logged.removeprefix(key.prefix)
    name = _LABELS.get(logged) or logged.rpartition("/")[2].replace("_", " ")
    return _WORDS.get(name, name)


_LABELS = {
    "throughput/tflops/device": "counted",
    "throughput/tflops/device_nominal": "as if nothing were dropped",
    "throughput/step_time": "mean",
    "throughput/tflops/device_6nd": "by 6ND",
    "host/tflops/device": "as Megatron prints it",
    "host/step_time": "as Megatron prints it",
    "throughput/tokens_per_sec": "whole job",
    "throughput/device/tokens_per_sec": "per device",
    "throughput/padding_fraction": "padding",
    "throughput/data_wait_fraction": "data wait",
    "throughput/imbalance/data_parallel": "data-parallel replicas",
    "throughput/imbalance/pipeline": "pipeline stages",
    "throughput/imbalance/experts": "experts of the worst layer",
    "throughput/imbalance/expert_ranks": "ranks",
    "throughput/imbalance/compute": "its time",
    "throughput/imbalance/work": "explained by its work",
    "throughput/imbalance/device": "not explained",
    "throughput/compute_time/max": "slowest rank",
    "throughput/compute_time/mean": "mean rank",
}
