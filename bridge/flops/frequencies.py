"""Options that say which layers are of one kind: every Nth, or a list with one entry per layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bridge.flops.shapes import ConfigError, ModelShape


def everywhere(shape: ModelShape) -> list[bool]:
    """All decoder layers."""
    return [True] * (shape.num_layers or 0)


def _but_every_nth(number: int, n: int) -> bool:
    return number % n != 0


def flagged(
    shape: ModelShape, option: str, holds: Callable[[int, int], bool] = _but_every_nth, count: int | None = None
) -> list[bool]:
    """Which layers an option names.

    Args:
        shape: the model.
        option: its field with an int N, or a list with one entry per layer.
        holds: (number of a layer, from 1; N) -> whether it is one of them; by default all but every Nth are.
        count: how many layers there are; unset: the decoder's.

    Raises:
        ConfigError: the option is neither, N is not positive, or the list is not as long as the model.
    """
    value = getattr(shape, option)
    count = (shape.num_layers or 0) if count is None else count
    if isinstance(value, int) and not isinstance(value, bool):
        if value <= 0:
            raise ConfigError(f"model.{option}={value} must be a positive integer, or a list with one entry per layer")
        return [holds(number, value) for number in range(1, count + 1)]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"model.{option}={value!r} must be an integer or a list with one entry per layer")
    if len(value) != count:
        raise ConfigError(f"model.{option} has {len(value)} entries, but model.num_layers={count}: give one entry per layer")
    return [bool(flag) for flag in value]


def linear_layers(shape: ModelShape) -> list[bool]:
    """Which decoder layers are linear attention: layer i (from 1) unless i % N == 0, or as the list says."""
    if shape.linear_attention_freq is None:
        raise ConfigError(
            f"model.linear_attention_freq is missing: experimental_attention_variant={shape.experimental_attention_variant!r} "
            "needs it (an integer N: every Nth layer is attention; or a list with 1 for linear)"
        )
    return flagged(shape, "linear_attention_freq")
