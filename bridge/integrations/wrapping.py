"""Events of a loop that has none: functions of its module, run inside ours from now on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]
Arguments = dict[str, Any]
#: Gets what is left to do, and the arguments by name, whatever order a version has them in; may change them.
Around = Callable[[Call, Arguments], Any]


def wrap(module: Any, name: str, around: Around) -> None:
    """Put ``around`` around a function of a module, or of one object, that looks it up by its name when it calls it.

    Raises:
        AttributeError: there is no such function.
    """
    original = getattr(module, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return around(lambda: original(*bound.args, **bound.kwargs), bound.arguments)

    setattr(module, name, wrapped)
