"""Counts in a process of their own, so that the redirect of megatron-core to the CPU stays out of the tests' process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def counted_by(script: str, *arguments: str) -> dict[str, Any]:
    """What the module ``oracle.<script>`` prints last: results by case, all of them counted in one process."""
    tests = Path(__file__).parents[1]
    # Threads cost more than they save on tensors of this size.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"oracle.{script}", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])
