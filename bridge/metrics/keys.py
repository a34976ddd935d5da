"""Every key that is logged, once: its unit and what it means.

The table of the documentation, the units in W&B and TensorBoard, and the panels of dashboards and reports come from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

STEP = "step"
"""Optimizer steps since the first ever: the axis of every chart."""

PREFIX = "bridge/"
"""What our keys begin with in a run of somebody else, so that none of theirs is overwritten or taken for ours."""

FRACTION, FLOP = "fraction", "FLOP"

LAYOUT = {
    "TP": "tensor_model_parallel_size",
    "PP": "pipeline_model_parallel_size",
    "VPP": "virtual_pipeline_model_parallel_size",
    "CP": "context_parallel_size",
    "EP": "expert_model_parallel_size",
    "DP": "data_parallel_size",
}
"""The facts of a run that say how it was cut over its ranks, by their short names."""


@dataclass(frozen=True)
class Key:
    """A key, or a family of keys.

    Attributes:
        name: ``throughput/mfu``; ``throughput/flops/<component>`` stands for all keys that begin so.
        unit: of the numbers.
        meaning: in one sentence.
    """

    name: str
    unit: str
    meaning: str

    @property
    def prefix(self) -> Optional[str]:
        """What the keys of a family begin with; None for a single key."""
        return self.name.partition("<")[0] if "<" in self.name else None

    def matches(self, key: str) -> bool:
        """Whether a logged key is this one, or of this family."""
        return key == self.name if self.prefix is None else key.startswith(self.prefix) and key != self.prefix

    def matching(self, logged: Iterable[str]) -> list[str]:
        """Those of the logged keys that are meant."""
        return [key for key in logged if self.matches(key)]


#: What ``ThroughputCallback`` reports.
THROUGHPUT = (
    Key("throughput/tflops/device", "TFLOP/s", "model FLOPs of the interval / seconds / world size"),
    Key(
        "throughput/tflops/device_6nd",
        "TFLOP/s",
        "what 6 x all parameters x tokens would have claimed; where some parameters are frozen",
    ),
    Key("throughput/tflops", "TFLOP/s", "model FLOPs of the interval / seconds, whole job"),
    Key(
        "throughput/mfu",
        FRACTION,
        "model FLOP/s over the peak; with several number formats the time that their FLOPs take at their peaks, over the time",
    ),
    Key("throughput/hfu", FRACTION, "the same of hardware FLOP/s (with recomputation)"),
    Key("throughput/optimizer_flops", FLOP, "matrix products of the optimizer (Muon, SOAP), all ranks; in HFU, not in MFU"),
    Key("throughput/rerun_flops", FLOP, "iterations that megatron-core ran again, to check a result; in HFU alone"),
    Key(
        "throughput/forward_flops/<phase>",
        FLOP,
        "of the interval, all ranks: passes of TRL's GRPOTrainer that train nothing (generation, log_probabilities, reference); "
        "in no total",
    ),
    Key("throughput/mfu_bf16", FRACTION, "model FLOP/s over the BF16 peak, as papers have it; where not all runs in BF16"),
    Key("throughput/format_fraction/<format>", FRACTION, "of the model FLOPs, by number format; where there are several"),
    Key("throughput/tokens_per_sec", "tokens/s", "real tokens, no padding"),
    Key("throughput/device/tokens_per_sec", "tokens/s", "the same / world size"),
    Key("throughput/samples_per_sec", "sequences/s", "sequences"),
    Key("throughput/step_time", "s", "mean in the interval"),
    Key("throughput/step_time/median", "s", "of the steps of the reporting rank"),
    Key("throughput/step_time/p95", "s", "19 of 20 of them are not longer"),
    Key(
        "throughput/time/<part>",
        "s/step",
        "where the time of a step goes, mean over the ranks: ideal, padding, recompute, kernels (without a peak: compute), "
        "imbalance, bubble, communication, optimizer, data, host; they add up to step_time",
    ),
    Key("throughput/time_fraction/<part>", FRACTION, "the same over step_time; ideal is the MFU"),
    Key("throughput/padding_fraction", FRACTION, "padded positions over all positions"),
    Key("throughput/data_wait_fraction", FRACTION, "time waiting for the next batch"),
    Key(
        "throughput/imbalance/data_parallel",
        "ratio",
        "largest over mean work of the replicas; up to 64 of them, absent above (one entry each in the vector)",
    ),
    Key("throughput/imbalance/pipeline", "ratio", "largest over mean work of the pipeline stages"),
    Key("throughput/dropped_tokens_fraction", FRACTION, "assignments of tokens to experts that a capacity dropped"),
    Key("throughput/imbalance/experts", "ratio", "tokens of the fullest expert over the mean; the worst of all layers"),
    Key("throughput/imbalance/experts/layer_<number>", "ratio", "the same in each layer of experts"),
    Key(
        "throughput/imbalance/expert_ranks",
        "ratio",
        "the same of the ranks that experts are spread over, all layers together: what the others wait for",
    ),
    Key(
        "throughput/tflops/device_nominal",
        "TFLOP/s",
        "model FLOPs as if experts had dropped nothing / seconds / world size; where they can",
    ),
    Key("throughput/compute_time/mean", "s/step", "forward and backward passes, mean over the ranks"),
    Key("throughput/compute_time/max", "s/step", "the same, of the slowest rank"),
    Key("throughput/compute_time/slowest_rank", "index", "the slowest rank"),
    Key(
        "throughput/compute_time/slowest_<dimension>",
        "index",
        "where it stands: data_parallel, pipeline, tensor, context, expert; those of more than one rank",
    ),
    Key("throughput/imbalance/compute", "ratio", "compute time of the slowest rank over the mean"),
    Key(
        "throughput/imbalance/work",
        "ratio",
        "work of the same rank over the mean: what its data, its stage and its experts explain",
    ),
    Key("throughput/imbalance/device", "ratio", "imbalance/compute over imbalance/work: what its work does not explain"),
    Key("throughput/energy", "J", "energy of all devices in the timed part of the interval"),
    Key("throughput/power", "W", "the same / seconds / world size"),
    Key("throughput/flops_per_joule", "FLOP/J", "model FLOPs / energy"),
    Key(
        "throughput/memory/peak_allocated",
        "byte",
        "most that torch's allocator has held, on the fullest rank",
    ),
    Key("throughput/memory/peak_reserved", "byte", "most that it has reserved, likewise"),
    Key("throughput/memory/peak_rss", "byte", "most memory of a process so far, on the fullest rank; without a GPU"),
    Key("throughput/memory/fullest_rank", "index", "the rank of the first of these that is there"),
    Key(
        "throughput/memory/allocator_retries",
        "count",
        "of the interval, all ranks: no memory at first",
    ),
    Key("throughput/flops/<component>", FLOP, "work of the interval by component; adds up to the total"),
    Key("throughput/statistics/<statistic>", "1", "sums over the interval's batches, of which FLOPs are made in any convention"),
    Key("throughput/unlearned_tokens", "tokens", "computed in steps that were skipped"),
    Key("throughput/unread_micro_batches", "count", "micro-batches whose lengths could not be read"),
    Key("throughput/incomplete", "1", "present from the first of these on: totals are lower bounds"),
    Key(
        "throughput/doubtful",
        "1",
        "present where MFU or HFU is above 1, or the built model has other parameters than the plan: the number cannot be true",
    ),
    Key("throughput/overhead_ms", "ms/step", "what the callback itself cost"),
    Key("throughput/total_flops", FLOP, "since the first step ever; kept in checkpoints"),
    Key("throughput/total_tokens", "tokens", "since the first step ever; kept in checkpoints"),
)

#: What our training loop logs besides, under Megatron-LM's names.
TRAINING = (
    Key("lm loss", "nats/token", "mean over the tokens of the step"),
    Key("lm loss validation", "nats/token", "the same on held-out text"),
    Key("grad-norm", "1", "of all gradients, before clipping"),
    Key("learning-rate", "1", "of the step"),
    Key("batch-size", "sequences", "of the step, over all ranks"),
    Key("consumed-samples", "sequences", "since the first step ever"),
    Key("skipped-iterations", "steps", "without an update, since the first step ever"),
)

#: The life of the job, restarts included, in the summary of a run of our loop.
JOB = (
    Key("goodput", FRACTION, "productive over wall time of the job"),
    Key("goodput/flops", FRACTION, "FLOPs of steps that were kept over all that were done"),
    Key(
        "goodput/seconds/<part>",
        "s",
        "launch, import, groups, load, first_step, productive, data, evaluation, checkpoint, lost, down, end",
    ),
    Key("goodput/interruptions", "count", "how often the job was started again"),
    Key("goodput/mean_time_to_recover", "s", "from the last sign of life to the next step"),
)

#: What a report shows beside these, of a loop that prints rates of its own.
HOST = (
    Key("host/tflops/device", "TFLOP/s", "as Megatron-LM or Megatron-Bridge prints it"),
    Key("host/step_time", "s", "as Megatron-LM or Megatron-Bridge prints it"),
)

KEYS = (*THROUGHPUT, *TRAINING, *JOB, *HOST)
_BY_NAME = {key.name: key for key in KEYS}


def find_key(logged: str) -> Optional[Key]:
    """What is declared of a logged key; None for a stranger's."""
    return _BY_NAME.get(logged) or next((key for key in KEYS if key.matches(logged)), None)


def units() -> dict[str, str]:
    """The unit of every key."""
    return {key.name: key.unit for key in KEYS}
