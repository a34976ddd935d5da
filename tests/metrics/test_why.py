"""The largest loss and its remedy, in words."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass

import pytest

from bridge.config import Config
from bridge.metrics.time_parts import PARTS
from bridge.metrics.why import REMEDIES, waterfall, why


def test_the_largest_loss_and_its_remedy_in_a_sentence():
    rows = [
        {f"throughput/time/{name}": value for name, value in row.items()}
        for row in (
            {"ideal": 0.2, "kernels": 0.2, "communication": 0.5, "host": 0.1},
            {"ideal": 0.4, "kernels": 0.0, "communication": 0.5, "host": 0.1},
            {"ideal": 9.0},
        )
    ]
    parts = waterfall([*rows, {"lm loss": 1.0}])
    assert parts == pytest.approx({"ideal": 0.3, "kernels": 0.1, "communication": 0.5, "host": 0.1})
    assert why(parts) == (
        "Mean MFU 30.0%: of 1 s per step 300 ms are the counted work at the peak. Most of the rest is communication, "
        f"500 ms (50%): {REMEDIES['communication']}. Then kernels 10%, host 10%."
    )
    assert why({}) is None
    assert why({"compute": 0.75, "host": 0.25}).startswith("A mean step takes 1 s. Most of the rest is compute, 750 ms (75%)")


def test_every_loss_has_a_remedy_and_its_options_are_real():
    assert REMEDIES.keys() == PARTS.keys() - {"ideal"}
    sections = {section.name: section.default_factory for section in fields(Config) if is_dataclass(section.default_factory)}
    options = {section: {option.name for option in fields(kind)} for section, kind in sections.items()}
    anywhere = set().union(*options.values())
    for part, remedy in REMEDIES.items():
        for section, option in re.findall(r"\b(data|hardware|train|model)\.(\w+)", remedy):
            assert option in options[section], part
        for option in re.findall(r"\b[a-z]+(?:_[a-z]+){2,}\b", remedy):
            assert option in anywhere, part


def test_a_mean_is_over_rows_that_have_every_part():
    rows = [{"throughput/time/data": 1.0}, {"throughput/time/data": 3.0, "throughput/time/host": 1.0, "throughput/mfu": 0.5}]
    assert waterfall([*rows, {"throughput/time/host": 3.0, "throughput/time/data": 5.0}]) == {"data": 4.0, "host": 2.0}
    assert list(waterfall(rows)) == ["data", "host"]  # the order of a waterfall
    assert waterfall([]) == waterfall([{"lm loss": 1.0}]) == {}


def test_small_losses_are_left_out_from_two_percent_down():
    parts = {"compute": 96.0, "data": 2.0, "host": 1.99, "bubble": 0.01}
    assert why(parts).endswith(f": {REMEDIES['compute']}. Then data 2%.")
    assert why({"compute": 1.0}).endswith(f"compute, 1 s (100%): {REMEDIES['compute']}.")


@pytest.mark.parametrize("parts", [{"ideal": 0.0}, {"compute": 0.0, "host": 0.0}, {"compute": 1.0, "host": -1.0}])
def test_a_step_without_a_length_has_no_reason(parts):
    assert why(parts) is None


def test_a_step_of_work_alone_has_a_sentence_too():
    """Nothing is lost: the first of the losses stands there with nothing."""
    assert why({"ideal": 2.0, "kernels": 0.0, "host": 0.0}) == (
        f"Mean MFU 100.0%: of 2 s per step 2 s are the counted work at the peak. Most of the rest is kernels, 0 ms (0%): "
        f"{REMEDIES['kernels']}."
    )
    assert why({"ideal": 2.0}) == "Mean MFU 100.0%: of 2 s per step 2 s are the counted work at the peak."
