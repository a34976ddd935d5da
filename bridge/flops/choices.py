"""Enumerations whose members are strings, checked where a value is made into one."""

from __future__ import annotations

from enum import StrEnum
from typing import NoReturn

from bridge.flops.shapes import ConfigError


class Choice(StrEnum):
    """One of a few names; any other raises ConfigError with one sentence that names the known ones.

    Members equal their strings, so that either may be given.  The first line of a subclass's docstring says what is chosen.
    """

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise ConfigError(f"{cls.__name__.lower()}={value!r} is not known; choose one of {', '.join(cls)}")
