"""Do something on every rank, and fail on all of them if it failed on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from bridge.training.errors import RunError

T = TypeVar("T")

# Parts of the errors of torch's archive writer after an incomplete write.
_CUT_SHORT = ("inline_container", "PytorchStreamWriter", "iostream error")


def everywhere(action: Callable[[], T], what: str) -> T:
    """Call ``action`` on this rank, wait for all ranks, and return its result.

    A collective: all ranks must call it.  If the action raised on any rank, every rank raises the same :class:`RunError`, which
    begins with ``what``; so no rank waits for one that has failed.
    """
    result, problem = None, None
    try:
        result = action()
    except Exception as error:
        problem = describe(error)
    problems = gather(problem)
    for rank, text in enumerate(problems):
        if text is not None:
            where = f" (rank {rank})" if len(problems) > 1 else ""
            raise RunError(f"{what}: {text}{where}", shared=True)
    return result  # type: ignore[return-value]


def gather(value: Any) -> list[Any]:
    """The values of all ranks, in order, on every rank."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """The first rank's value, on every rank."""
    return from_rank(value, 0)


def from_rank(value: Any, rank: int, group: Any = None) -> Any:
    """The value of one rank of a group (None: all ranks of the job), on every rank of it."""
    values = [value]
    source = rank if group is None else torch.distributed.get_global_rank(group, rank)
    torch.distributed.broadcast_object_list(values, src=source, group=group)
    return values[0]


def describe(error: BaseException) -> str:
    """One readable line: the system's message, without class names and traces where possible."""
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if any(sign in str(error) for sign in _CUT_SHORT):
        return "a file could not be written to its end; the disk may be full"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}".rstrip(": ")
