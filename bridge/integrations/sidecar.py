"""Totals beside the checkpoints of loops whose checkpoints cannot contain a callback's state.

They are a small JSON file in the folder of each checkpoint: ``iter_0000100/throughput.json`` for Megatron's.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bridge.config.caches import replace_json
from bridge.metrics.totals import Totals
from bridge.training.callbacks import ThroughputCallback
from bridge.training.job.agree import from_first

logger = logging.getLogger(__name__)

NAME = "throughput.json"
MEGATRONS = "iter_{step:07d}"
"""The name of a Megatron checkpoint's folder."""
#: The state for a checkpoint without totals: an unknown amount of work was done before it.
SOMETHING_WAS_DONE = Totals.unknown() | {"failed": False}


def save(throughput: ThroughputCallback, folder: Any, step: int, checkpoint: str = MEGATRONS) -> None:
    """Write the totals up to ``step``, on the first rank; a folder that cannot be written costs a warning."""
    if _rank() != 0:
        return
    path = Path(folder) / checkpoint.format(step=step) / NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, throughput.state_dict())
    except OSError as error:
        logger.warning("the throughput totals are not saved beside the checkpoint: %s", error)


def load(throughput: ThroughputCallback, folder: Any, step: int, checkpoint: str = MEGATRONS) -> None:
    """Continue from the totals of the checkpoint of ``step``, which the first rank reads for all; call it on every rank.

    If there are none, all later totals are lower bounds, and every row says so.
    """
    found = _read(Path(folder) / checkpoint.format(step=step) / NAME) if _rank() == 0 else None
    if dist.is_initialized():
        found = from_first(found)
    throughput.load_state_dict(found or SOMETHING_WAS_DONE)


def _read(path: Path) -> Any:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(state, dict) and SOMETHING_WAS_DONE.keys() <= state.keys():
            return state
        problem = "it holds no totals"
    except (OSError, ValueError) as error:
        problem = str(error)
    logger.warning("the throughput totals start again and are lower bounds, because %s cannot be read: %s", path, problem)
    return None


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
