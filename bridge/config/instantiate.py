"""Objects from a recipe: a mapping with ``_target_`` (an import path) and the target's arguments."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bridge.flops.shapes import ConfigError


def instantiate(spec: Mapping[str, Any], option: str = "callbacks", **given: Any) -> Any:
    """Import ``spec["_target_"]`` and call it with the other entries as keyword arguments.

    Args:
        spec: for example ``{"_target_": "bridge.training.callbacks.ThroughputCallback", "convention": "exact"}``.
        option: the spec's place in the recipe, for error messages.
        given: further arguments that a recipe need not set.

    Raises:
        ConfigError: The target cannot be imported or does not accept these arguments.
    """
    target, arguments = find_target(spec, option)
    _check_arguments(target, spec["_target_"], {**arguments, **given}, option)
    try:
        return target(**arguments, **given)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{option}: {spec['_target_']}: {error}") from error


def find_target(spec: Mapping[str, Any], option: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The target of a spec, and its arguments.

    Raises:
        ConfigError: it is not a spec, or its target cannot be imported.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("_target_"), str):
        raise ConfigError(f"{option}={spec!r} must be a mapping with `_target_` (an import path) and arguments")
    arguments = {str(key): value for key, value in spec.items() if key != "_target_"}
    return _import(spec["_target_"], option), arguments


def _import(name: str, option: str) -> Callable[..., Any]:
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ConfigError(f"{option}: _target_={name} is not an import path; write package.module.Name")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{option}: _target_={name} cannot be imported ({error}); is it on PYTHONPATH?") from None
    target = getattr(module, attribute, None)
    if not callable(target):
        near = difflib.get_close_matches(attribute, [key for key in dir(module) if not key.startswith("_")], n=1)
        remedy = f"did you mean {module_name}.{near[0]}?" if near else "check the name"
        raise ConfigError(f"{option}: _target_={name}: {module_name} has no {attribute}; {remedy}")
    return target


def _check_arguments(target: Callable[..., Any], name: str, arguments: Mapping[str, Any], option: str) -> None:
    signature = inspect.signature(target)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "no arguments"
        raise ConfigError(f"{option}: {name}: {error}; it takes {takes}") from None
