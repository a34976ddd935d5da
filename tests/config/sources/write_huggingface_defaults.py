"""Write bridge/config/sources/huggingface_defaults.json from the config classes of the installed transformers.

python tests/config/sources/write_huggingface_defaults.py
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bridge.config.sources import huggingface_fields
from bridge.config.sources.huggingface_families import FAMILIES
from bridge.config.sources.huggingface_fields import NEUTRAL, Fields

FILE = Path(huggingface_fields.__file__).with_name("huggingface_defaults.json")
#: Families without a config class of their own, and the one whose class they use.
SAME_CLASS = {"kimi_k2": "deepseek_v3", "mimo": "qwen2", "nemotron-nas": "llama"}


def class_defaults() -> dict[str, dict[str, Any]]:
    """model_type (or model_type.vision_config) -> the defaults of the fields that its family reads."""
    found: dict[str, dict[str, Any]] = {}
    for model_type, family in FAMILIES.items():
        kind = CONFIG_MAPPING[SAME_CLASS.get(model_type, model_type)]
        fields = _Recording(kind, model_type)
        dataclasses.replace(family, ignored="").options(fields)
        found[model_type] = fields.used()
        found |= {f"{model_type}.{name}": part.used() for name, part in fields.parts.items()}
    return {name: values for name, values in sorted(found.items()) if values}


class _Recording(Fields):
    """The fields of a config class, which keep the parts that a rule asked for."""

    def __init__(self, kind: type, defaults: str) -> None:
        super().__init__(_of(kind), defaults)
        self._class = kind
        self.parts: dict[str, _Recording] = {}

    def part(self, name: str) -> Fields:
        return self.parts.setdefault(name, _Recording(type(getattr(self._class(), name)), f"{self._kind}.{name}"))

    def used(self) -> dict[str, Any]:
        return {name: value for name, value in self._values.items() if name in self._read and _decides(name, value)}


def _decides(name: str, value: Any) -> bool:
    # That a file does not mention multi-token prediction does not mean that the model has it.
    known = name not in NEUTRAL and name not in ("num_mtp_layers", "num_nextn_predict_layers")
    return bool(value) and known and not isinstance(value, float)


def _of(kind: type) -> dict[str, Any]:
    """Class defaults as they are written, before ``__post_init__`` derives anything."""
    return {
        field.name: field.default_factory() if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }


if __name__ == "__main__":
    lines = [f" {json.dumps(model_type)}: {json.dumps(values)}" for model_type, values in class_defaults().items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
