"""Imports Megatron-Bridge without the packages that need a GPU: what it names of them is an empty object.

The package itself is installed with ``pip install --no-deps megatron-bridge``; its training loop, configuration, state and
callbacks are the released ones.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

#: Roots that the training loop imports and does not use on a CPU.
NOT_NEEDED = ("modelopt", "datasets", "six", "transformer_engine", "triton", "tensorboard")


class _Empty(types.ModuleType):
    """A module in which every name is there."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, roots: set[str]) -> None:
        self.roots = roots

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in self.roots:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


def root() -> Path | None:
    """The folder of the package; None where it is not installed."""
    spec = importlib.util.find_spec("megatron")
    places = [Path(place) / "bridge" for place in (spec.submodule_search_locations or ())] if spec else []
    return next((place for place in places if (place / "training" / "callbacks.py").exists()), None)


def install() -> None:
    """Make ``megatron.bridge.training.train`` importable. megatron-core must have been imported before."""
    folder = root()
    assert folder is not None
    missing = {name for name in NOT_NEEDED if importlib.util.find_spec(name) is None}
    sys.meta_path.append(_Finder(missing))
    # The packages' own __init__ import all models and Transformer Engine: a shell with the path alone will do.
    for name in ("megatron.bridge", "megatron.bridge.training", "megatron.bridge.models", "megatron.bridge.models.mamba"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[2:]))]
        sys.modules[name] = package
    from megatron.bridge.models import gpt_provider, t5_provider

    package = sys.modules["megatron.bridge.models"]
    package.GPTModelProvider, package.T5ModelProvider = gpt_provider.GPTModelProvider, t5_provider.T5ModelProvider
