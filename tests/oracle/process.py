"""Counts in a process of their own, so that the redirect of megatron-core to the CPU stays out of the tests' process."""

from __future__ import annotations

import json
from typing import Any


def counted_by(script: str, *arguments: str) -> dict[str, Any]:
    """What the module ``oracle.<script>`` prints last: results by case, all of them counted in one process."""
    from launch import launch

    result = launch(1, "-m", f"oracle.{script}", *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])
