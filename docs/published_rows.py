"""Published throughputs (tests/data/published_throughput.json), each held against ``bridge check``; see docs/published.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from bridge.config import load_recipe
from bridge.config.schema import PeftConfig
from bridge.flops.reading import Model, read
from bridge.planning.check import Check, CountedWay, check
from bridge.planning.quantities import Quantity

DATA = json.loads((Path(__file__).parents[1] / "tests" / "data" / "published_throughput.json").read_text())
SECONDS_PER_DAY = 86400
#: What ``check`` takes of a row as it is.
_TAKEN = ("sequence_length", "devices", "reported", "tokens_per_second", "step_time", "global_batch_size", "recompute",
          "parameters", "peak_flops")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row of a published table.

    Attributes:
        told: as the file has it.
        check: what ran and what was reported.
        way: the count by the convention and the rules that the file names.
    """

    told: dict[str, Any]
    check: Check
    way: CountedWay

    @property
    def source(self) -> str:
        return str(self.told["source"])

    @property
    def known(self) -> str:
        """What is known about the number."""
        return str(self.told.get("known", ""))

    @property
    def cells(self) -> tuple[str, ...]:
        """Model, tokens per row, devices, speed, published number, ours, ours over it."""
        told, counted = self.told, self.check
        start = (told["model"], f"{told['sequence_length']:,}", f"{told.get('devices', '')}")
        size = told.get("parameters")
        if self.holds_no_speed:
            ours = counted.parameters["total"]
            ratio = float(ours / counted.reported_parameters.number)  # type: ignore[union-attr]
            return (*start, "", f"{size} parameters", f"{ours:,}", f"{ratio:.4f}")
        speed = f"{float(counted.tokens_per_second or 0):,.6g} tokens/s"
        if "step_time" in told:
            speed = f"{told['step_time']} s per step of {told['global_batch_size']:,}"
        if "days" in told:
            speed = f"{told['days']} days of {told['tokens'] / 1e9:g} G tokens"
        kind = " " + (told.get("quantity", "") if "FU" in told.get("quantity", "") else "HFU" * ("recompute" in told))
        return (*start, speed, (told["reported"].replace("T", " T", 1) + kind).strip(),
                counted.shown(self.way), f"{self.way.ratio:.4f}")  # fmt: skip

    @property
    def holds_no_speed(self) -> bool:
        """A row that reports parameters alone."""
        return self.check.reported is None

    @property
    def agrees(self) -> bool:
        """Whether the count named in the file gives the published number."""
        return bool(self.check.parameters_agree) if self.holds_no_speed else self.check.agrees(self.way)

    @property
    def verdict(self) -> str:
        """``agrees``, ``explained``, ``wrong`` or ``open``."""
        if self.told.get("wrong"):
            return "wrong"
        if not self.agrees:
            return "open"
        return "explained" if self.told.get("rules") else "agrees"


def rows() -> Iterator[Row]:
    """Every row, in the order of the file."""
    return map(row_of, DATA["rows"])


def family(row: Row) -> str:
    """The source without its page, release or table."""
    name = (
        row.source.split(" (")[0]
        if row.source[0].isupper() and "/" in row.source.split(" ")[0]
        else row.source.split(" Table")[0]
    )
    parts = name.split("/")
    return "/".join([parts[0], parts[1].split(" ")[0]]) if len(parts) > 1 and "arXiv" not in name else name


def row_of(told: dict[str, Any]) -> Row:
    """A row with its check."""
    checked = check_of(told)
    return Row(told, checked, checked.under(told["convention"], *told.get("rules", ())))


def check_of(told: dict[str, Any]) -> Check:
    """What ran and what was reported."""
    model, plans = _model(told["config"], json.dumps(told.get("fields", {})), told.get("lora_rank", 0),
                          told.get("tensor_model_parallel_size", 1))  # fmt: skip
    given = {name: told[name] for name in _TAKEN if name in told}
    if "days" in told:  # of so many tokens on all devices
        days = Quantity.parse(told["days"])
        speed = Fraction(told["tokens"]) / (days.number * SECONDS_PER_DAY) / told["devices"]
        given["tokens_per_second"] = _speed(speed, days.rounding / days.number)
    if "samples_per_second" in told:  # a whole number, of which the tokens per second were made
        speed = Fraction(told["samples_per_second"] * told["sequence_length"], told["devices"])
        given["tokens_per_second"] = _speed(speed, Fraction(1, 2 * told["samples_per_second"]))
    found = check(model, **given)
    return replace(found, name=told["model"], case=replace(found.case, plans=plans))


def _speed(value: Fraction, rounding: Fraction) -> Quantity:
    return replace(Quantity.of(value), rounding=value * rounding)


@cache
def _model(config: str, fields: str, lora_rank: int, tensor_size: int) -> tuple[Model, dict[Any, Any]]:
    """The model, read once, and room for its plans."""
    entry = DATA["configs"].get(config, {"recipe": config, "fields": {}})
    own = {**entry["fields"], **json.loads(fields), "tensor_model_parallel_size": tensor_size}
    if entry["recipe"] is None:
        return read({"model": own}), {}
    recipe = _recipe(entry["recipe"])
    peft = PeftConfig(kind="lora", dim=lora_rank) if lora_rank else recipe.peft
    return read(replace(recipe, model=replace(recipe.model, **own), peft=peft)), {}


@cache
def _recipe(name: str) -> Any:
    return load_recipe(name, validate=False)
