"""Prices a finished run again in another convention, from the statistics in its rows and the price lists in its facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from bridge.flops import ConfigError
from bridge.metrics.prices import STATISTIC, priced
from bridge.metrics.time_parts import PARTS
from bridge.report.run_file import LoggedRow, RecordedRun

_FLOPS, _TOTAL = "throughput/flops/", "throughput/total_flops"
#: Rates that depend on nothing but the model FLOPs of an interval.
_RATES = ("throughput/tflops", "throughput/tflops/device", "throughput/mfu", "throughput/mfu_bf16", "throughput/flops_per_joule")
#: Keys that are dropped: they would need the work of each replica, stage or rank, or FLOPs by number format.
_GONE = ("throughput/imbalance/", "throughput/format_fraction/", "throughput/doubtful")


def rescore(run: RecordedRun, convention: str) -> Iterator[LoggedRow]:
    """The rows that a run under ``convention`` would have written: integers are equal, rates agree to their last digits.

    The rates of the first row cover its whole interval, because rows do not separate the warm-up step. Imbalances are left
    out, and so is utilization if several number formats run.

    Raises:
        ConfigError: the run lacks price lists or statistics, or its own prices do not reproduce its own numbers.
    """
    lists = run.facts.get("prices")
    own = str(run.facts.get("convention"))
    if not isinstance(lists, dict) or own not in lists or not any(name.startswith(STATISTIC) for name in run.names()):
        raise ConfigError("the run has no price lists or no throughput/statistics/ keys: it was written before bridge 0.2")
    if convention not in lists:
        raise ConfigError(f"--convention {convention}: the run has prices for {', '.join(lists)}")
    totals = {name: Fraction(0) for name in (own, convention)}
    for row in run.rows:
        statistics = {key.removeprefix(STATISTIC): value for key, value in row.items() if key.startswith(STATISTIC)}
        if not statistics:
            yield row
            continue
        found = {name: _components(lists[name], statistics) for name in totals}
        for name, components in found.items():
            totals[name] += sum(components.values())
        _check(row, found[own], own)
        yield _again(row, lists, statistics, found, (own, convention), totals)


def _components(prices: Mapping[str, Any], statistics: Mapping[str, int]) -> dict[str, Fraction]:
    try:
        return priced(prices["components"], statistics)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"the run's price lists do not fit its rows: {error}") from None


def _check(row: LoggedRow, components: Mapping[str, Fraction], own: str) -> None:
    """Raise ConfigError unless the run's own prices reproduce its own numbers."""
    for name, flops in components.items():
        logged = row.get(_FLOPS + name)
        if logged is not None and logged != round(flops):
            raise ConfigError(f"step {row['step']}: {_FLOPS}{name} is {logged:,}, and its own {own} prices give {round(flops):,}")


def _again(
    row: LoggedRow,
    lists: Mapping[str, Any],
    statistics: Mapping[str, int],
    found: Mapping[str, Mapping[str, Fraction]],
    names: tuple[str, str],
    totals: Mapping[str, Fraction],
) -> LoggedRow:
    """The row of another convention; ``names``: the run's own convention and the other one."""
    own, convention = names
    again = {key: value for key, value in row.items() if not key.startswith((_FLOPS, *_GONE)) and key != _TOTAL}
    several = any(key.startswith("throughput/format_fraction/") for key in row)
    before, after = (sum(found[name].values()) for name in names)
    for key in _RATES:
        if key in again and before:
            again[key] *= float(Fraction(after) / Fraction(before))
        if several and "mfu" in key:
            again.pop(key, None)
    hardware = [sum(priced(lists[name].get("hardware", {}), statistics).values()) for name in names]
    if several or not all(hardware):
        again.pop("throughput/hfu", None)
    elif "throughput/hfu" in again:
        again["throughput/hfu"] *= float(Fraction(hardware[1]) / Fraction(hardware[0]))
    again |= _parts(row, before, after, hardware)
    again |= {_FLOPS + name: round(flops) for name, flops in found[convention].items()}
    # Totals that include work before the first row are known in the run's own convention only.
    if row.get(_TOTAL) == round(totals[own]):
        again[_TOTAL] = round(totals[convention])
    return again


def _parts(row: LoggedRow, before: Any, after: Any, hardware: list[Any]) -> LoggedRow:
    """The time at the peak and the remaining time of the passes; all other parts stay as measured."""
    made: LoggedRow = {}
    for prefix in ("throughput/time/", "throughput/time_fraction/"):
        parts = {name: row[prefix + name] for name in PARTS if prefix + name in row}
        if "ideal" not in parts or not before:
            continue
        passes = sum(parts.get(name, 0.0) for name in ("ideal", "recompute", "kernels"))
        ideal = parts["ideal"] * float(Fraction(after) / Fraction(before))
        again = 0.0
        if "recompute" in parts and all(hardware):
            again = ideal * float(Fraction(hardware[1]) / Fraction(after) - 1)
            made[prefix + "recompute"] = again
        made |= {prefix + "ideal": ideal, prefix + "kernels": passes - ideal - again}
    return made
