"""An adapter without its framework says what to install, and nothing else of the package needs it."""

import importlib
import sys
from types import SimpleNamespace

import pytest

ADAPTERS = {
    "megatron_bridge": ("megatron.core.utils", "pip install megatron-core"),
    "megatron_lm": ("megatron.training", "put its repository on PYTHONPATH"),
    "transformers_trainer": ("transformers", "pip install transformers"),
    "lightning_trainer": ("lightning.pytorch", "pip install lightning"),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_importing_an_adapter_without_its_framework(adapter, monkeypatch):
    missing, remedy = ADAPTERS[adapter]
    if adapter == "megatron_lm":  # it builds upon the other adapter, whose framework takes seconds to import
        monkeypatch.setitem(sys.modules, "bridge.integrations.megatron_bridge", SimpleNamespace(observed=None))
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"bridge.integrations.{adapter}", raising=False)
    with pytest.raises(ImportError, match=f"bridge.integrations.{adapter} needs .*: {remedy}"):
        importlib.import_module(f"bridge.integrations.{adapter}")
