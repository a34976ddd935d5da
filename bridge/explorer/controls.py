"""The inputs of the page, as data: each control checks values, reads them from a link and writes them into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from bridge.flops import ConfigError
from bridge.flops.shapes import short

#: The longest sequences that can be set, tokens: 10 M.
LONGEST_LENGTH = 10 * 2**20
#: Separates the values of a multiple choice in a link; no recipe's name contains it.
SEPARATOR = "~"


@dataclass(frozen=True, kw_only=True)
class _Control:
    """What all controls have.

    Attributes:
        key: its name in the link and in code.
        label: its name on the page.
        info: a sentence of help.
    """

    key: str
    label: str
    info: str = ""

    def accept(self, value: Any) -> Any:
        """The value, checked; ConfigError says why it is impossible."""
        raise NotImplementedError

    def read(self, text: str) -> Any:
        """The value that a link's text stands for; ConfigError as for ``accept``."""
        return self.accept(text)

    def write(self, value: Any) -> str:
        """The text of a value in a link."""
        return str(value)


@dataclass(frozen=True, kw_only=True)
class Slider(_Control):
    """A number from a range.

    Attributes:
        minimum, maximum, step: the range; if all three are integers, so are the values.
        default: the initial value.
    """

    minimum: float
    maximum: float
    step: float
    default: float

    def accept(self, value: Any) -> float:
        """The value as a number of the range; ConfigError otherwise."""
        whole = all(isinstance(number, int) for number in (self.minimum, self.maximum, self.step))
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not isfinite(number) or not self.minimum <= number <= self.maximum or (whole and number != int(number)):
            kind = "an integer" if whole else "a number"
            raise ConfigError(f"{self.label}: {short(value)} must be {kind} from {self.minimum:,} to {self.maximum:,}")
        return int(number) if whole else number

    def write(self, value: Any) -> str:
        return f"{value:.10g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class Select(_Control):
    """One of several names.

    Attributes:
        options: all names.
        default: the initial value.
        buttons: whether the options are buttons side by side instead of a list that opens.
    """

    options: Sequence[str]
    default: str
    buttons: bool = False

    def accept(self, value: Any) -> str:
        """The value as one of the options; ConfigError otherwise."""
        if value not in self.options:
            raise ConfigError(f"{self.label}: {short(value)} is not one of the options")
        return str(value)


@dataclass(frozen=True, kw_only=True)
class Choices(_Control):
    """Any number of several names, in the order they were picked.

    Attributes:
        options: all names.
        default: the initial values.
        most: how many may be picked.
        buttons: whether the options are check boxes instead of a list that opens.
    """

    options: Sequence[str]
    default: tuple[str, ...]
    most: int = 12
    buttons: bool = False

    def accept(self, value: Any) -> tuple[str, ...]:
        """The values as a tuple of options; ConfigError otherwise."""
        given = value if isinstance(value, (list, tuple)) else [value] if value else []
        for name in given:
            if not isinstance(name, str) or name not in self.options:
                raise ConfigError(f"{self.label}: {short(name)} is not one of the options")
        picked = tuple(dict.fromkeys(given))
        if len(picked) > self.most:
            raise ConfigError(f"{self.label}: {len(picked)} are too many to show; pick at most {self.most}")
        return picked

    def read(self, text: str) -> tuple[str, ...]:
        return self.accept([name for name in text.split(SEPARATOR) if name])

    def write(self, value: Any) -> str:
        return SEPARATOR.join(value)


@dataclass(frozen=True, kw_only=True)
class Toggle(_Control):
    """On or off."""

    default: bool

    def accept(self, value: Any) -> bool:
        """The value as a truth value; ConfigError otherwise."""
        if not isinstance(value, bool):
            raise ConfigError(f"{self.label}: {short(value)} must be on or off")
        return value

    def read(self, text: str) -> bool:
        return self.accept({"1": True, "0": False}.get(text, text))

    def write(self, value: Any) -> str:
        return "1" if value else "0"


Control = Slider | Select | Choices | Toggle
Values = dict[str, Any]


def defaults(controls: Sequence[Control]) -> Values:
    """The initial value of each control."""
    return {control.key: control.default for control in controls}


def accept(controls: Sequence[Control], values: Values) -> Values:
    """All values, checked; ConfigError names the first impossible one."""
    return {control.key: control.accept(values[control.key]) for control in controls}
