"""Enumerations whose members are strings, checked where a value is made into one."""

from __future__ import annotations

from enum import Enum
from typing import NoReturn

from bridge.flops.shapes import ConfigError


class Choice(str, Enum):
    """One of a few names; any other raises ConfigError with one sentence that names the known ones.

    Members equal their strings, so that either may be given.  The first line of a subclass's docstring says what is chosen.
    """

    # As those of Python 3.11's StrEnum, so that a member is printed as its string.
    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ConfigError(f"{cls.__name__.lower()}={value!r} is not known; choose one of {', '.join(cls)}")
