"""Declares every logged key with its unit and its meaning.

The table in the documentation, the units in W&B and TensorBoard, and the panels of dashboards and reports are made from these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

STEP = "step"
"""Optimizer steps since the first step of training: the axis of every chart."""

PREFIX = "bridge/"
"""The prefix of our keys in a run that the host opened, so that the two sets of keys stay apart."""

FRACTION, FLOP = "fraction", "FLOP"

LAYOUT = {
    "TP": "tensor_model_parallel_size",
    "PP": "pipeline_model_parallel_size",
    "VPP": "virtual_pipeline_model_parallel_size",
    "CP": "context_parallel_size",
    "EP": "expert_model_parallel_size",
    "DP": "data_parallel_size",
}
"""The facts that describe a run's parallel layout, by their short names."""


@dataclass(frozen=True)
class Key:
    """A key, or a family of keys.

    Attributes:
        name: ``throughput/mfu``; ``throughput/flops/<component>`` covers all keys with that beginning.
        unit: the unit of the numbers.
        meaning: one sentence.
    """

    name: str
    unit: str
    meaning: str

    @property
    def prefix(self) -> str | None:
        """The common beginning of a family's keys; None for a single key."""
        return self.name.partition("<")[0] if "<" in self.name else None

    def matches(self, key: str) -> bool:
        """Whether a logged key is this one, or of this family."""
        return key == self.name if self.prefix is None else key.startswith(self.prefix) and key != self.prefix

    def matching(self, logged: Iterable[str]) -> list[str]:
        """The logged keys that are this one, or of this family."""
        return [key for key in logged if self.matches(key)]


#: What ``ThroughputCallback`` reports.
THROUGHPUT = (
    Key("throughput/tflops/device", "TFLOP/s", "model FLOPs of the interval / seconds / world size"),
    Key(
        "throughput/tflops/device_6nd",
        "TFLOP/s",
        "the speed by 6 x all parameters x tokens; present where some parameters are frozen",
    ),
    Key("throughput/tflops", "TFLOP/s", "model FLOPs of the interval / seconds, whole job"),
    Key(
        "throughput/mfu",
        FRACTION,
        "model FLOP/s over the peak; with several number formats, the time of their FLOPs at their peaks over the time taken",
    ),
    Key("throughput/hfu", FRACTION, "the same for hardware FLOP/s (with recomputation)"),
    Key("throughput/optimizer_flops", FLOP, "matrix products of the optimizer (Muon, SOAP) on all ranks; in HFU, not in MFU"),
    Key("throughput/rerun_flops", FLOP, "iterations that megatron-core reran to check a result; in HFU, not in MFU"),
    Key(
        "throughput/forward_flops/<phase>",
        FLOP,
        "passes of TRL's GRPOTrainer that train nothing (generation, log_probabilities, reference), all ranks, over the "
        "interval; not in the totals",
    ),
    Key("throughput/mfu_bf16", FRACTION, "model FLOP/s over the BF16 peak, as in papers; present where other formats run too"),
    Key("throughput/format_fraction/<format>", FRACTION, "share of the model FLOPs by number format, where there are several"),
    Key("throughput/tokens_per_sec", "tokens/s", "real tokens per second of the whole job, without padding"),
    Key("throughput/device/tokens_per_sec", "tokens/s", "the same / world size"),
    Key("throughput/samples_per_sec", "sequences/s", "sequences per second of the whole job"),
    Key("throughput/step_time", "s", "mean over the interval"),
    Key("throughput/step_time/median", "s", "median over the steps of the reporting rank"),
    Key("throughput/step_time/p95", "s", "95th percentile of the same steps"),
    Key(
        "throughput/time/<part>",
        "s/step",
        "where the time of a step goes, mean over the ranks: ideal, padding, recompute, kernels (without a peak: compute), "
        "imbalance, bubble, communication, optimizer, data, host; they add up to step_time",
    ),
    Key("throughput/time_fraction/<part>", FRACTION, "the same over step_time; the fraction of ideal is the MFU"),
    Key("throughput/padding_fraction", FRACTION, "padded positions over all positions"),
    Key("throughput/data_wait_fraction", FRACTION, "share of the time spent waiting for the next batch"),
    Key(
        "throughput/imbalance/data_parallel",
        "ratio",
        "max/mean work of the replicas; absent above 64 of them (the vector has one entry per replica)",
    ),
    Key("throughput/imbalance/pipeline", "ratio", "max/mean work of the pipeline stages"),
    Key("throughput/dropped_tokens_fraction", FRACTION, "share of the assignments of tokens to experts that a capacity dropped"),
    Key("throughput/imbalance/experts", "ratio", "max/mean tokens of the experts, in the layer where it is largest"),
    Key("throughput/imbalance/experts/layer_<number>", "ratio", "max/mean tokens of the experts in this layer"),
    Key(
        "throughput/imbalance/expert_ranks",
        "ratio",
        "max/mean tokens of the ranks that the experts are spread over, all layers together: the others wait for the fullest",
    ),
    Key(
        "throughput/tflops/device_nominal",
        "TFLOP/s",
        "model FLOPs as if experts had dropped nothing / seconds / world size; present where experts can drop tokens",
    ),
    Key("throughput/compute_time/mean", "s/step", "time of forward and backward passes, mean over the ranks"),
    Key("throughput/compute_time/max", "s/step", "time of forward and backward passes on the slowest rank"),
    Key("throughput/compute_time/slowest_rank", "index", "the slowest rank"),
    Key(
        "throughput/compute_time/slowest_<dimension>",
        "index",
        "the slowest rank's index in each dimension of more than one rank: data_parallel, pipeline, tensor, context, expert",
    ),
    Key("throughput/imbalance/compute", "ratio", "max/mean compute time of the ranks"),
    Key(
        "throughput/imbalance/work",
        "ratio",
        "work of the slowest rank over the mean: the part that its data, its stage and its experts explain",
    ),
    Key("throughput/imbalance/device", "ratio", "imbalance/compute over imbalance/work: the part that the work does not explain"),
    Key("throughput/energy", "J", "energy of all devices in the timed part of the interval"),
    Key("throughput/power", "W", "the same / seconds / world size"),
    Key("throughput/flops_per_joule", "FLOP/J", "model FLOPs / energy"),
    Key(
        "throughput/memory/peak_allocated",
        "byte",
        "most memory that torch's allocator has held, on the fullest rank",
    ),
    Key("throughput/memory/peak_reserved", "byte", "most memory that torch's allocator has reserved, on the fullest rank"),
    Key("throughput/memory/peak_rss", "byte", "largest resident memory of a process so far, on the fullest rank; without a GPU"),
    Key("throughput/memory/fullest_rank", "index", "the fullest rank by the first of the three peaks that is known"),
    Key(
        "throughput/memory/allocator_retries",
        "count",
        "allocations that succeeded only after a retry, all ranks, over the interval",
    ),
    Key("throughput/flops/<component>", FLOP, "work of the interval by component; adds up to the total"),
    Key("throughput/statistics/<statistic>", "1", "sum over the interval's batches, from which any convention's FLOPs follow"),
    Key("throughput/unlearned_tokens", "tokens", "tokens computed in steps that were skipped"),
    Key("throughput/unread_micro_batches", "count", "micro-batches whose lengths could not be read"),
    Key("throughput/incomplete", "1", "present from the first unread micro-batch on: totals are lower bounds"),
    Key(
        "throughput/doubtful",
        "1",
        "present where the numbers cannot be true: MFU or HFU is above 1, or the built model's parameters differ from the plan",
    ),
    Key("throughput/overhead_ms", "ms/step", "time that the callback itself took"),
    Key("throughput/total_flops", FLOP, "FLOPs since the first step of training; kept in checkpoints"),
    Key("throughput/total_tokens", "tokens", "tokens since the first step of training; kept in checkpoints"),
)

#: What our training loop logs in addition, under Megatron-LM's names.
TRAINING = (
    Key("lm loss", "nats/token", "mean over the tokens of the step"),
    Key("lm loss validation", "nats/token", "the same on held-out text"),
    Key("grad-norm", "1", "norm of all gradients, before clipping"),
    Key("learning-rate", "1", "learning rate of the step"),
    Key("batch-size", "sequences", "samples of the step, over all ranks"),
    Key("consumed-samples", "sequences", "samples since the first step of training"),
    Key("skipped-iterations", "steps", "steps without an update since the first step of training"),
)

#: The life of the job, restarts included, in the summary of a run.
JOB = (
    Key("goodput", FRACTION, "productive time over the wall time of the job"),
    Key("goodput/flops", FRACTION, "FLOPs of the steps that were kept, over the FLOPs of all steps"),
    Key(
        "goodput/seconds/<part>",
        "s",
        "launch, import, groups, load, start_up, first_step, productive, data, evaluation, checkpoint, lost, down, unknown, end",
    ),
    Key("goodput/interruptions", "count", "how often the job was restarted"),
    Key("goodput/mean_time_to_recover", "s", "from the last sign of life to the next step"),
    Key("goodput/unknown", "names", "in other frameworks' loops: the parts that were not reported"),
)

#: What a report also shows for a loop that prints its own rates.
HOST = (
    Key("host/tflops/device", "TFLOP/s", "as Megatron-LM or Megatron-Bridge prints it"),
    Key("host/step_time", "s", "as Megatron-LM or Megatron-Bridge prints it"),
)

KEYS = (*THROUGHPUT, *TRAINING, *JOB, *HOST)
_BY_NAME = {key.name: key for key in KEYS}


def find_key(logged: str) -> Key | None:
    """The declaration of a logged key; None if there is none, as for keys of the host."""
    return _BY_NAME.get(logged) or next((key for key in KEYS if key.matches(logged)), None)


def units() -> dict[str, str]:
    """The unit of every key."""
    return {key.name: key.unit for key in KEYS}
