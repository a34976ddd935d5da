"""An adapter without its framework says what to install, and nothing else of the package needs it."""

import importlib
import sys

import pytest

ADAPTERS = {
    "transformers_trainer": ("transformers", "pip install transformers"),
    "lightning_trainer": ("lightning.pytorch", "pip install lightning"),
    "deepspeed_engine": ("deepspeed", "pip install deepspeed"),
    "torchtitan_trainer": ("torchtitan.trainer", "pip install torchtitan"),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_importing_an_adapter_without_its_framework(adapter, monkeypatch):
    missing, remedy = ADAPTERS[adapter]
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"bridge.integrations.{adapter}", raising=False)
    with pytest.raises(ImportError, match=f"bridge.integrations.{adapter} needs .*: {remedy}"):
        importlib.import_module(f"bridge.integrations.{adapter}")


def test_megatron_lm_is_looked_for_where_it_is_needed(monkeypatch):
    adapter = importlib.import_module("bridge.integrations.megatron_lm")
    monkeypatch.setitem(sys.modules, "megatron.training", None)
    with pytest.raises(ImportError, match="bridge.integrations.megatron_lm needs Megatron-LM: put its repository on PYTHONPATH"):
        adapter.attach()
    for argv, named in (([], "nothing"), (["no_such_script.py"], "no_such_script.py")):
        with pytest.raises(SystemExit, match=f"bridge: error: {named} is not a file; give Megatron-LM's pretrain_gpt.py"):
            adapter.main(argv)
