"""The headline of a report: what holds for the whole run.  Facts come from a file, so any of them may have any type."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from bridge.metrics.keys import LAYOUT, find_key
from bridge.report.run_file import RecordedRun
from bridge.report.scale import scale_of
from bridge.report.thin import is_whole, numpy_if_there
from bridge.report.view import Card, Column, Table
from bridge.text import digits_of, with_unit

_LONGEST = 160
#: From this many values on, importing numpy pays off.
_LONG = 10_000
#: A table of a run has at most this many rows.
MOST_KEYS = 300


def headlines(run: RecordedRun) -> list[Card]:
    """The headline, results first; what is unknown is left out."""
    return [*_results(run), *_constants(run)]


def notes_of(run: RecordedRun) -> list[str]:
    """One sentence for each irregularity of the run or its file."""
    sentences = []
    if run.torn:
        sentences.append("The file ends in the middle of a row: the run was killed, or is still writing.")
    if run.skipped:
        sentences.append(f"{run.skipped:,} rows were damaged or had no step, and are left out.")
    if run.whole is not None:
        sentences.append(f"A long run: medians are those of every {run.whole.every}th row; extremes, means and totals are exact.")
    if any(number > 1 for name in ("mfu", "hfu") for number in present(run, f"throughput/{name}")):
        sentences.append("Doubtful: a utilization above 100%. The peak, the number format or the convention does not fit.")
    details = run.facts.get("verified_details")
    if run.facts.get("verified") == "no" and present(run, "throughput/doubtful") and isinstance(details, list) and details:
        sentences.append(f"Doubtful: the built model is not the priced model. {_text('; '.join(map(str, details)))}.")
    if not any(key.startswith("throughput/") for key in run.names()):
        sentences.append("This run has no throughput/ keys: its recipe had no ThroughputCallback.")
    if _incomplete(run):
        sentences.append("Incomplete: the lengths of some micro-batches could not be read. Totals are lower bounds.")
    missing = run.facts.get("not_counted")
    if isinstance(missing, list) and missing:
        sentences.append(f"Not counted: {_text('; '.join(map(str, missing)))}.")
    return sentences


def _incomplete(run: RecordedRun) -> bool:
    return bool(present(run, "throughput/incomplete")) or "incomplete" in run.facts


def all_keys(run: RecordedRun) -> Table:
    """The keys of the run, declared or not, up to ``MOST_KEYS`` of them."""
    rows = []
    for name in run.names()[:MOST_KEYS]:
        values, key = present(run, name), find_key(name)
        rows.append((name, values[-1], typical(run, name), min(values), max(values), key.unit if key else ""))
    numbers = (Column(heading, heading, digits_of) for heading in ("last", "median", "least", "most"))
    return Table((Column("key", "key"), *numbers, Column("unit", "unit")), rows)


def present(run: RecordedRun, key: str) -> Sequence[Any]:
    """The values of a key in the rows that have one."""
    column = run.series(key)
    return column if is_whole(column) else [number for number in column if number is not None]


def typical(run: RecordedRun, key: str) -> Any:
    """The median of a key; for a thinned run the median of its sample, if the sample has the key."""
    sampled = () if run.whole is None else [value for value in run.whole.sample.get(key, ()) if value is not None]
    return middle(sampled or present(run, key))


def middle(values: Sequence[Any]) -> Any:
    """The median; numpy computes that of a long column if it is installed."""
    if isinstance(values, array) and len(values) > _LONG and (numpy := numpy_if_there()):
        places = [(len(values) - 1) // 2, len(values) // 2]
        return median(numpy.partition(values, places)[places].tolist())
    return median(values)


def _results(run: RecordedRun) -> Iterator[Card]:
    last = run.steps[-1]
    yield Card("steps", "Last step", last, f"{last:,}", f"{run.count:,} log points, {run.kind}")
    for key, label, unit in (
        ("throughput/tflops/device", "FLOP/s per device, median", "TFLOP/s"),
        ("throughput/mfu", "MFU, median", "fraction"),
        ("throughput/tokens_per_sec", "Tokens per second, median", "tokens/s"),
    ):
        if numbers := present(run, key):
            usual = typical(run, key)
            scale = scale_of(unit, usual)
            yield Card(key.removeprefix("throughput/"), label, usual, scale.text(usual), f"last {scale.text(numbers[-1])}")
    least = ", at least" if _incomplete(run) else ""
    if numbers := present(run, "throughput/total_flops"):
        planned = _number(run, "planned_flops")
        of_plan = f"; {numbers[-1] / planned:.1%} of at most {with_unit(planned, 'FLOP')} planned" if planned else ""
        text, detail = with_unit(numbers[-1], "FLOP"), f"{numbers[-1]:,}{of_plan}"
        yield Card("total_flops", f"FLOPs so far{least}", numbers[-1], text, detail)
    if numbers := present(run, "throughput/total_tokens"):
        yield Card("total_tokens", f"Tokens so far{least}", numbers[-1], with_unit(numbers[-1], ""), f"{numbers[-1]:,}")


def _constants(run: RecordedRun) -> Iterator[Card]:
    if device := run.facts.get("device"):
        # The recipe if matmuls are quantized, else the number format of all.
        number_format = run.facts.get("number_format_recipe") or run.facts.get("number_format") or ""
        yield Card("device", "Device", _text(device), _text(device), _join(_text(number_format), _layout(run)))
    if peak := _number(run, "peak_flops"):
        yield Card("peak_flops", "Peak per device", peak, with_unit(peak, "FLOP/s"), _text(run.facts.get("peak_source") or ""))
    if convention := run.facts.get("convention"):
        price, length = _number(run, "flops_per_token"), _number(run, "flops_per_token_seq_length")
        detail = f"{with_unit(price, 'FLOP')} per token at {length:,} tokens" if price and length else ""
        traced = "traced from the module that ran" if run.facts.get("source") == "traced" else ""
        yield Card("convention", "Convention", _text(convention), _text(convention), _join(detail, traced))
    parameters = run.facts.get("parameters")
    counts = {name: count for name, count in parameters.items() if _is_count(count)} if isinstance(parameters, dict) else {}
    if total := counts.get("total"):
        active = counts.get("active", total)
        detail = _join(f"{total:,}", f"{active:,} active" if active != total else "")
        yield Card("parameters", "Parameters", total, with_unit(total, ""), detail)
        trained = counts.get("trainable", total)
        if trained != total:
            yield Card("trainable", "Trained", trained, f"{trained / total:.3%}", f"{trained:,} parameters")


def _layout(run: RecordedRun) -> str:
    world = _number(run, "world_size")
    if not world:
        return ""
    parts = [f"{name} {size}" for name, key in LAYOUT.items() if (size := _number(run, key)) and size > 1]
    return f"{world:,} rank{'s' if world > 1 else ''}" + (f": {' x '.join(parts)}" if parts else "")


def _number(run: RecordedRun, name: str) -> Any | None:
    value = run.facts.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e300 else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**30


def _text(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _join(*parts: str) -> str:
    return ", ".join(filter(None, parts))
