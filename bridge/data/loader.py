"""The data of a run, from its configuration: corpus, samples and iterators of micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import DataLoader

from bridge.data.batching import Collate, MicroBatch, build_collate
from bridge.data.corpus import load_corpus, split
from bridge.data.samples import KINDS, Samples
from bridge.data.schedule import BatchSchedule, MicroBatchSampler
from bridge.data.tokenizer import tokenizer_for
from bridge.flops.shapes import ConfigError

if TYPE_CHECKING:
    from bridge.config.schema import Config


class SampleSource(Protocol):
    """An endless sequence of samples; each depends only on the seed and its number."""

    def __getitem__(self, index: int) -> Any:
        """Sample ``index``, as the collate function takes it."""

    def samples_per_epoch(self) -> int:
        """Number of samples in the first epoch, before any repeats."""


class RunData(Protocol):
    """Training and evaluation data of a run, independent of ranks."""

    training: SampleSource
    evaluation: SampleSource | None
    schedule: BatchSchedule
    collate: Collate
    fingerprint: str
    """A text that is equal if and only if the samples are the same."""


#: ``data.kind`` -> the class that reads it: its module and its name.
KINDS_OF_DATA = {
    "text": ("bridge.data.loader", "TextData"),
    "instructions": ("bridge.data.instructions", "InstructionData"),
    "images": ("bridge.data.images", "ImageData"),
}


def open_data(cfg: Config) -> RunData:
    """The data of ``data.kind``.

    Raises:
        ConfigError: The configured data does not exist, or is not enough for one global batch.
    """
    module, name = KINDS_OF_DATA[cfg.data.kind]
    data: RunData = getattr(import_module(module), name)(cfg)
    return data


def schedule_for(cfg: Config) -> BatchSchedule:
    """The batch size of the configuration over the run."""
    ramp = cfg.train.rampup_batch_size
    return BatchSchedule(cfg.train.global_batch_size, (ramp[0], ramp[1], ramp[2]) if ramp else None)


def evaluates(cfg: Config) -> bool:
    """Whether the run is evaluated on held-out data."""
    return bool(cfg.train.eval_interval) and cfg.train.eval_iters > 0


class TextData:
    """Training and evaluation text of a run."""

    def __init__(self, cfg: Config) -> None:
        """Read and tokenize everything.

        Raises:
            ConfigError: There is no text, its vocabulary is too large, or there are too few documents for one global batch.
        """
        seq_length = cfg.model.seq_length
        if seq_length is None or seq_length < 1:
            raise ConfigError(f"model.seq_length={seq_length} must be set to the longest sequence, in tokens.")
        tokenizer = tokenizer_for(cfg)
        corpus = load_corpus(
            cfg.data.path,
            tokenizer,
            separator=cfg.data.document_separator,
            max_documents=cfg.data.max_documents,
            min_document_length=cfg.data.min_document_length,
        )
        training, evaluation = split(len(corpus), cfg.data.eval_fraction, cfg.train.seed)
        kind = KINDS[cfg.data.batching]
        self.fingerprint = corpus.fingerprint()
        self.schedule = schedule_for(cfg)
        self.collate = collate_for(cfg)
        self.training: Samples = kind(corpus, training, seq_length, cfg.train.seed)
        self.evaluation: Samples | None = kind(corpus, evaluation, seq_length, cfg.train.seed) if evaluates(cfg) else None
        self._check(cfg, len(corpus))

    def _check(self, cfg: Config, documents: int) -> None:
        where = "Python's standard library" if cfg.data.path is None else f"data.path={cfg.data.path!r}"
        have, need = self.training.samples_per_epoch(), self.schedule.global_batch_size
        if have < need:
            raise ConfigError(
                f"train.global_batch_size={need}: one batch needs {need} different samples, but {where} gives {have} for "
                f"training (data.batching={cfg.data.batching}, {documents} documents). Give more text, set "
                "data.document_separator where a file holds several documents, or use fewer ranks and a smaller "
                "train.global_batch_size."
            )
        if self.evaluation is not None and self.evaluation.samples_per_epoch() < 1:
            raise ConfigError(
                f"data.eval_fraction={cfg.data.eval_fraction} leaves no sample for evaluation of the {documents} "
                f"documents in {where}. Raise it, give more text, or set train.eval_iters=0."
            )


def collate_for(cfg: Config) -> Collate:
    """The collate function for the configuration's batching and parallel layout."""
    parallel = cfg.parallel
    return build_collate(
        cfg.data.batching,
        tensor_parallel_sequence=parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1,
        context_parallel_size=parallel.context_parallel_size,
        alignment=16 if cfg.model.fp8 else 1,
    )


def micro_batches(
    samples: SampleSource,
    sampler: MicroBatchSampler,
    collate: Collate,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[MicroBatch]:
    """An endless iterator of this replica's micro-batches, on the CPU.

    Worker processes keep the order.  The iterator does not use torch's global random state.
    """
    return iter(
        DataLoader(
            samples,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),
        )
    )
