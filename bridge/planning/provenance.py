"""Where the sizes of a matmul come from: the formula over configuration fields behind each of them.

Nothing is declared twice.  A plan is compiled once more from a shape whose integers remember the field they were read from
(``Size``), so every formula is the one the components really use.  Fields that choose between formulas instead of entering
one (``gated_linear_unit``, ``moe_layer_freq``, ``peft``) are found by taking them away and looking which matmuls change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bridge.flops.conventions import Convention
from bridge.flops.plan import Plan, TableRow, compile_plan
from bridge.flops.reading import Model, read
from bridge.flops.shapes import ConfigError


@dataclass(frozen=True, order=True)
class _Factor:
    """A field, or a quotient of formulas, which no polynomial can hold."""

    text: str
    fields: tuple[str, ...]


_Monomial = tuple[_Factor, ...]


class Size(int):
    """An integer that carries the polynomial over configuration fields it was computed with.

    Sums, differences, products and powers are followed; a quotient stays as it was written.  Everything else that integers
    do (comparing, hashing, printing) is the integer's own.  Formulas are Python expressions over the model's fields.
    """

    _terms: Mapping[_Monomial, int]

    @classmethod
    def of_field(cls, name: str, value: int) -> Size:
        """The value of a field."""
        return cls._make(value, {(_Factor(name, (name,)),): 1})

    @classmethod
    def _make(cls, value: int, terms: Mapping[_Monomial, int]) -> Size:
        size = cls(value)
        size._terms = {monomial: factor for monomial, factor in terms.items() if factor}
        return size

    @property
    def formula(self) -> str:
        """``kv_channels*num_attention_heads + 2*kv_channels*num_query_groups``: an expression over the model's fields."""
        parts = [_product(monomial, factor) for monomial, factor in self._terms.items()]
        return " + ".join(parts).replace("+ -", "- ") or "0"

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields in it."""
        return tuple(dict.fromkeys(name for monomial in self._terms for factor in monomial for name in factor.fields))

    @property
    def numerator(self) -> Size:
        """Itself: what a Fraction keeps of an integer."""
        return self

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        sums = dict(self._terms)
        for monomial, factor in _terms_of(other).items():
            sums[monomial] = sums.get(monomial, 0) + factor
        return self._make(int(self) + int(other), sums)

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        products: dict[_Monomial, int] = {}
        for mine, a in self._terms.items():
            for theirs, b in _terms_of(other).items():
                both = tuple(sorted(mine + theirs))
                products[both] = products.get(both, 0) + a * b
        return self._make(int(self) * int(other), products)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Any:
        return self * -1

    def __sub__(self, other: Any) -> Any:
        return self + -other if isinstance(other, int) else NotImplemented

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __pow__(self, exponent: Any, modulus: Any = None) -> Any:
        result: Any = 1
        for _ in range(exponent):
            result = self * result
        return result

    def __floordiv__(self, other: Any) -> Any:
        return _quotient(self, other) if isinstance(other, int) else NotImplemented

    def __rfloordiv__(self, other: Any) -> Any:
        return _quotient(other, self)


def _terms_of(value: int) -> Mapping[_Monomial, int]:
    return value._terms if isinstance(value, Size) else {(): int(value)} if value else {}


def _product(monomial: _Monomial, factor: int) -> str:
    powers = {part.text: monomial.count(part) for part in monomial}
    names = [text if power == 1 else f"{text}**{power}" for text, power in powers.items()]
    number = [] if names and abs(factor) == 1 else [str(abs(factor))]
    return "-" * (factor < 0) + "*".join([*number, *names])


def _quotient(above: int, below: int) -> Size:
    value, fields = int(above) // int(below), tuple(dict.fromkeys((*fields_of(above), *fields_of(below))))
    if int(above) < 0:  # how integers round up: -(-a // b)
        return Size._make(value, {(_Factor(f"ceil({formula_of(-above)} / {_operand(below)})", fields),): -1})
    return Size._make(value, {(_Factor(f"({_operand(above)} // {_operand(below)})", fields),): 1})


def _operand(value: int) -> str:
    """A formula that may stand beside an operator: one factor as it is, anything else in brackets."""
    text = formula_of(value)
    bare = not isinstance(value, Size) or (len(value._terms) == 1 and "*" not in text and not text.startswith("-"))
    return text if bare else f"({text})"


def formula_of(value: int) -> str:
    """The formula behind an integer; for a plain one, its digits."""
    return value.formula if isinstance(value, Size) else str(int(value))


def fields_of(value: int) -> tuple[str, ...]:
    """The fields behind an integer; none for a plain one."""
    return value.fields if isinstance(value, Size) else ()


@dataclass(frozen=True)
class Origin:
    """Where one row of ``Plan.table`` comes from.

    Attributes:
        row: the row; its FLOPs are those of a batch in which every statistic is 1.
        k, n, times: the formulas of its sizes.
        rows: the formulas of the sizes in its statistic (window, chunk, top-k), in order.
        fields: every configuration field in them.
        switches: the other fields that made it what it is: without them this row is absent, has other sizes, is in
            another number of layers, or runs other passes.
    """

    row: TableRow
    k: str
    n: str
    times: str
    rows: tuple[str, ...]
    fields: tuple[str, ...]
    switches: tuple[str, ...]


def explain(cfg: Any, convention: str | Convention = "megatron", *, framework: str | None = None) -> list[Origin]:
    """The origin of every row of a plan's table, in its order.

    The arguments are those of ``compile_plan``.
    """
    model = read(cfg)
    plan = compile_plan(_remembering(model), convention, framework=framework)
    rows = _rows(plan)
    changed = {}
    for name, without in _ablations(model):
        try:
            others = set(_rows(compile_plan(without(), convention, framework=framework)))
        except ConfigError:  # the model does not exist without it
            continue
        changed[name] = [row not in others for row in rows]
    sizes = {statistic.name: statistic.sizes for statistic in plan.statistics}
    origins = []
    for i, row in enumerate(rows):
        numbers = (row.k, row.n, row.times.numerator, *sizes[row.rows])
        fields = tuple(dict.fromkeys(name for number in numbers for name in fields_of(number)))
        times = formula_of(row.times.numerator) + (f"/{row.times.denominator}" if row.times.denominator != 1 else "")
        switches = tuple(name for name, rows_changed in changed.items() if rows_changed[i] and name not in fields)
        of_rows = tuple(map(formula_of, sizes[row.rows]))
        origins.append(Origin(row, formula_of(row.k), formula_of(row.n), times, of_rows, fields, switches))
    return origins


def _rows(plan: Plan) -> list[TableRow]:
    """The table of a batch of ones: what distinguishes rows, whatever the batch."""
    return [replace(row, share=0.0) for row in plan.tabulate([1] * len(plan.statistics))]


# ---- models whose integers remember --------------------------------------------------------------

#: Parts of a model -> the prefix of the names of their fields.
_PARTS = {"language": "", **{part: f"{part}_config." for part in ("vision", "audio", "diffusion", "byte_latent")}}


def _remembering(model: Model) -> Model:
    traced = {part: _traced(shape, _PARTS[part]) for part, shape in _parts(model)}
    if model.adapters is not None:
        traced["adapters"] = replace(model.adapters, dim=_sized("peft.dim", model.adapters.dim))
    return replace(model, **traced)


def _parts(model: Model) -> list[tuple[str, Any]]:
    found = [(part, getattr(model, part)) for part in _PARTS]
    return [(part, shape) for part, shape in found if shape is not None]


def _traced(shape: Any, prefix: str) -> Any:
    values = {item.name: getattr(shape, item.name) for item in dataclasses.fields(shape)}
    return replace(shape, **{name: _sized(prefix + name, value) for name, value in values.items()})


def _sized(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(value) <= 2:  # a window, not a list with an entry per layer
        return type(value)(_sized(f"{name}[{i}]", entry) for i, entry in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _traced(value, f"{name}.")
    return Size.of_field(name, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _ablations(model: Model) -> Iterator[tuple[str, Callable[[], Model]]]:
    """The model without each field that is set, one at a time; made when asked for, since some have no model without them."""
    for part, shape in _parts(model):
        for name, without in _without(shape):
            yield _PARTS[part] + name, partial(replace, model, **{part: without})
    for part, prefix in _PARTS.items():
        if prefix and getattr(model, part) is not None:
            yield prefix.rstrip("."), partial(replace, model, **{part: None})
    for name, cleared in {"peft": _UNADAPTED, "teacher": {"teacher": None}, "reference_model": {"reference": False}}.items():
        if any(getattr(model, field) for field in cleared):
            yield name, partial(replace, model, **cleared)


_UNADAPTED: dict[str, Any] = {"adapters": None, "freeze": (), "train": ()}


def _without(shape: Any) -> Iterator[tuple[str, Any]]:
    for item in dataclasses.fields(shape):
        if item.default is not dataclasses.MISSING and getattr(shape, item.name) != item.default:
            yield item.name, replace(shape, **{item.name: item.default})
