"""Starts a worker file on two ranks, and reads what each of them wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def two_ranks(worker: str, folder: Path, **environment: str) -> list[dict[str, Any]]:
    """What ``worker``, a file beside this one, wrote into ``folder``, rank by rank."""
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), str(HERE)])
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(HERE / worker), str(folder)]
    around = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
    done = subprocess.run([sys.executable, *command], env=around, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
