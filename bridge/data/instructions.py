"""``data.kind=instructions``: packed prompts with answers; only the answers are learned."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bridge.data.corpus import split
from bridge.data.examples import read_examples
from bridge.data.packed.content import PackedFile, PackedRow, pack_examples
from bridge.data.samples import EpochOrder, Segment
from bridge.data.tokenizer import tokenizer_for
from bridge.flops.shapes import ConfigError

if TYPE_CHECKING:
    from bridge.config.schema import Config, PackedSequenceSpecs

_SPECS = "data.packed_sequence_specs"
_TRAIN, _VAL = f"{_SPECS}.packed_train_data_path", f"{_SPECS}.packed_val_data_path"


class PackedRows:
    """Packed rows as an endless sequence of samples, in epoch e in the order of the permutation drawn from (seed, e)."""

    def __init__(self, rows: Sequence[PackedRow], cfg: Config) -> None:
        assert cfg.model.seq_length is not None
        assert cfg.model.vocab_size is not None
        self.rows = rows
        self._longest, self._vocab_size = cfg.model.seq_length, cfg.model.vocab_size
        self._order = EpochOrder(np.arange(len(rows)), cfg.train.seed)

    def samples_per_epoch(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Segment]:
        number = self._order[index]
        row = self.rows[number]
        if not 0 <= row.input_ids.min() <= row.input_ids.max() < self._vocab_size:
            raise ConfigError(
                f"model.vocab_size={self._vocab_size}: packed row {number} has tokens outside of it; set it to the vocabulary "
                "size of the tokenizer that packed it"
            )
        segments = row.segments()
        longest = max(len(inputs) for inputs, *_ in segments)
        if longest > self._longest:
            raise ConfigError(
                f"model.seq_length={self._longest}: packed row {number} has a sequence of {longest} tokens; raise it"
            )
        return segments


class InstructionData:
    """Training and evaluation rows of a run, packed at its start or read from packed files."""

    def __init__(self, cfg: Config) -> None:
        """Read everything.

        Raises:
            ConfigError: There are no examples or rows, none fits into a row, or there are too few for one global batch.
        """
        from bridge.data.loader import collate_for, evaluates, schedule_for  # torch, which packing a file does not need

        files = _named(cfg)
        training, evaluation, self.fingerprint = _pack(cfg) if files is None else _read_files(files)
        self.schedule = schedule_for(cfg)
        self.collate = collate_for(cfg)
        self.training = PackedRows(training, cfg)
        self.evaluation: PackedRows | None = PackedRows(evaluation, cfg) if evaluates(cfg) else None
        have, need = len(training), self.schedule.global_batch_size
        if have < need:
            raise ConfigError(
                f"train.global_batch_size={need}: one batch needs {need} different rows, and only {have} are packed. Give "
                f"more examples (data.path, data.max_documents), a smaller {_SPECS}.packed_sequence_size or a smaller batch."
            )
        if self.evaluation is not None and not evaluation:
            remedy = "Raise data.eval_fraction" if files is None else f"Set {_VAL}"
            raise ConfigError(f"train.eval_interval={cfg.train.eval_interval}: no rows to evaluate on. {remedy}.")


def pack_instructions(cfg: Config) -> tuple[list[PackedRow], list[PackedRow]]:
    """The rows to train on and those to evaluate on, from the configuration's examples.

    Raises:
        ConfigError: There are no examples, or none fits into a row.
    """
    if cfg.model.seq_length is None or cfg.model.vocab_size is None:
        raise ConfigError("model.seq_length and model.vocab_size must be set: the longest sequence, and the number of tokens")
    tokenizer = tokenizer_for(cfg)
    examples = read_examples(cfg.data.path, cfg.data.max_documents)
    size, longest = packed_sequence_size(cfg), cfg.model.seq_length + 1
    parts = split(len(examples), cfg.data.eval_fraction, cfg.train.seed)
    shuffled = (np.random.default_rng([cfg.train.seed, 0x9AC4]).permutation(part).tolist() for part in parts)
    training, evaluation = (pack_examples(examples, tokenizer, size=size, longest=longest, order=order) for order in shuffled)
    if not training:
        raise ConfigError(
            f"data.path={cfg.data.path!r}: none of the {len(examples)} examples fits into a row of {size} tokens. Raise "
            f"model.seq_length or {_SPECS}.packed_sequence_size."
        )
    return training, evaluation


def packed_sequence_size(cfg: Config) -> int:
    """Maximum tokens per row."""
    specs = cfg.data.packed_sequence_specs
    assert cfg.model.seq_length is not None
    return (specs and specs.packed_sequence_size) or cfg.model.seq_length


def _named(cfg: Config) -> PackedSequenceSpecs | None:
    """The packed files to read, if there are any."""
    specs = cfg.data.packed_sequence_specs
    return None if specs is None or specs.packed_train_data_path is None else specs


def _read_files(specs: PackedSequenceSpecs) -> tuple[Sequence[PackedRow], Sequence[PackedRow], str]:
    assert specs.packed_train_data_path is not None
    training = PackedFile(specs.packed_train_data_path, _TRAIN)
    if specs.packed_val_data_path is None:
        return training, (), training.fingerprint()
    evaluation = PackedFile(specs.packed_val_data_path, _VAL)
    return training, evaluation, f"{training.fingerprint()}; {evaluation.fingerprint()}"


def _pack(cfg: Config) -> tuple[Sequence[PackedRow], Sequence[PackedRow], str]:
    training, evaluation = pack_instructions(cfg)
    checksum = 0
    for row in (*training, *evaluation):
        for part in row:
            checksum = zlib.crc32(part.tobytes(), checksum)
    return training, evaluation, f"{len(training)} and {len(evaluation)} packed rows, crc32 {checksum:08x}"
