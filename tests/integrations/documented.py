"""Runs the code of docs/integrations.md as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "integrations.md"


def code(section: str) -> str:
    """The Python block of a section, by the section's title."""
    body = DOCUMENT.read_text().split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.search(r"```python\n(.*?)```", body, re.DOTALL)[1]


def run(section: str, names: dict[str, Any]) -> dict[str, Any]:
    """Execute it with what the reader has already; returns all names it knows afterwards."""
    exec(compile(code(section), f"{DOCUMENT}#{section}", "exec"), names)
    return names
