"""Prints one JSON object: of every provider class of the installed Megatron-Bridge its fields and what is said about its model;
of every record of mixed precision the formats that are read.

Run as a process of its own, since Megatron-Bridge is imported without the packages that need a GPU.
"""

import dataclasses
import importlib
import importlib.util
import json
import os
import sys
from types import SimpleNamespace

import megatron.core  # noqa: F401  (before the stand-ins for what is missing)

from bridge.flops import ConfigError, compile_plan
from bridge.flops.reading import read
from tests.integrations import megatron_bridge_stubs

MISSING = (*megatron_bridge_stubs.NOT_NEEDED, "mamba_ssm", "causal_conv1d", "flash_attn", "timm", "qwen_vl_utils", "apex")


def classes():
    """Every provider in the modules that can be imported here."""
    folder = megatron_bridge_stubs.root() / "models"
    found = {}
    for path in sorted(folder.rglob("*provider.py")):
        name = "megatron.bridge.models." + ".".join(path.relative_to(folder).with_suffix("").parts)
        try:
            module = importlib.import_module(name)
        except Exception:  # it needs the real Transformer Engine
            print(name, file=sys.stderr)
            continue
        found |= {
            kind.__name__: kind
            for kind in vars(module).values()
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and hasattr(kind, "provide")
        }
    return found


def described(kind):
    """What the plan of a provider's defaults says; None where the class alone describes no model."""
    try:
        provider = kind()
    except Exception:  # DistillationProvider is made otherwise
        return None
    if not getattr(provider, "vocab_size", None):
        provider.vocab_size = 1024
    try:
        plan = compile_plan(SimpleNamespace(model=provider, peft=None))
    except ConfigError as error:
        return {"error": str(error)}
    return {"not_counted": plan.not_counted, "flops": str(plan.flops([4096])), "parameters": plan.parameters()["total"]}


def formats(kind):
    """By name; the object says the same."""
    from megatron.bridge.training.mixed_precision import MIXED_PRECISION_RECIPES, get_mixed_precision_config

    model = kind(num_layers=8, hidden_size=64, num_attention_heads=4, vocab_size=96)
    found = {}
    for name in MIXED_PRECISION_RECIPES:
        chosen = name, get_mixed_precision_config(name)
        one, other = (read(SimpleNamespace(model=model, mixed_precision=it)).formats for it in chosen)
        assert one == other
        found[name] = (one.base, one.recipe and one.recipe.name, one.first, one.last)
    return found


if __name__ == "__main__":
    names = {name for name in MISSING if importlib.util.find_spec(name) is None}
    sys.meta_path.append(megatron_bridge_stubs._Finder(names))
    with open(os.devnull, "w") as silent:
        printed, sys.stdout = sys.stdout, silent
        kinds = classes()
        providers = {
            name: {"fields": [item.name for item in dataclasses.fields(kind)], "described": described(kind)}
            for name, kind in kinds.items()
        }
        result = {"providers": providers, "formats": formats(kinds["GPTModelProvider"])}
        sys.stdout = printed
    print(json.dumps(result))
