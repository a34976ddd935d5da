"""The adapter that docs/extending.md writes, in a loop that nothing here was made for. Two ranks are in ``test_two_ranks.py``."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

pytest.importorskip("transformers")

import lap
import tiny_llama
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.usefixtures("no_measurement")

STEPS = 7


@cache
def batches() -> list[Any]:
    """Two a step, of one text each: nothing is padded, and execution can be compared."""
    return [tiny_llama.collate([text]) for text in tiny_llama.texts(2 * STEPS)]


def executed(steps: int) -> int:
    """What the passes of the first steps execute."""
    model = tiny_llama.model()
    with FlopCounterMode(display=False) as counter:
        for batch in batches()[: 2 * steps]:
            model(**batch).loss.backward()
    return counter.get_total_flops()


def trained(checkpoint: Any = None, **options: Any) -> lap.Trainer:
    callback = lap.adapter()(convention="executed", **options)
    trainer = lap.Trainer(tiny_llama.model(), batches(), [callback], STEPS)
    trainer.fit(checkpoint)
    return trainer


def test_rows_in_the_loops_logger_are_what_was_executed():
    """Every second step and the last one, under their own steps; evaluations are not in them; the logger was still open."""
    trainer = trained()
    assert trainer.logger.column("throughput/total_flops") == {step: executed(step) for step in (2, 4, 6, 7)}
    assert list(trainer.logger.column("loss")) == [2, 4, 6]
    assert not trainer.logger.column("throughput/incomplete")


def test_a_training_that_resumes_goes_on():
    whole = trained()
    rest = trained(whole.saved[4], log_interval=1)
    assert rest.logger.column("throughput/total_flops") == {step: executed(step) for step in (5, 6, 7)}


def test_a_checkpoint_that_knows_no_totals_makes_them_lower_bounds():
    whole = trained()
    rest = trained({**whole.saved[4], "callbacks": [None]})
    assert rest.logger.column("throughput/total_flops") == {step: executed(step) - executed(4) for step in (6, 7)}
    assert rest.logger.column("throughput/incomplete") == {6: 1, 7: 1}


def test_its_row_in_the_catalogue():
    row = lap.catalogued()
    assert row.module == "lap_callback"
    compile(row.lines, row.framework, "exec")
