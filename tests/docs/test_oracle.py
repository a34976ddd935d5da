"""docs/oracle.md names every family that can be read."""

import re
from pathlib import Path

from bridge.config.sources.huggingface_families import FAMILIES

#: Language models inside of a listed vision-language model, and models made of two listed parts.
PARTS = {"qwen2_5_vl_text", "qwen2_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_5", "qwen3_5_moe", "glm4v_text",
         "glm4v_moe_text"}  # fmt: skip


def test_every_family_is_accounted_for():
    named = set(re.findall(r"`([\w-]+)`", (Path(__file__).parents[2] / "docs" / "oracle.md").read_text()))
    assert set(FAMILIES) - PARTS <= named, set(FAMILIES) - PARTS - named
