"""Events for a loop that has none: functions of its module are wrapped in ours."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]
Arguments = dict[str, Any]
#: Is called with the original call and its arguments by name, in whatever order a version takes them; it may change them.
Around = Callable[[Call, Arguments], Any]


def wrap(module: Any, name: str, around: Around) -> None:
    """Wrap a function of a module or of an object whose callers look it up by its name at each call.

    Raises:
        AttributeError: There is no such function.
    """
    original = getattr(module, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return around(lambda: original(*bound.args, **bound.kwargs), bound.arguments)

    setattr(module, name, wrapped)
