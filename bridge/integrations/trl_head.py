"""TRL's fused head: a causal model whose output layer and loss are fused, called with ``fused_lm_head=True``.

With Triton it projects only the positions whose next label is not -100, otherwise all of them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from bridge.metrics.batch_lengths import NO_LABEL, PROJECTED
from bridge.tracing.images import inner

logger = logging.getLogger(__name__)


def leaves_out(model: Any) -> bool:
    """Whether a model has such a head and is on a device where the head leaves positions out."""
    utils: Any = sys.modules.get("trl.trainer.utils")
    if utils is None or utils.__file__ not in _files_of(inner(model).forward):
        return False
    if not hasattr(utils, "_use_triton"):
        logger.warning("TRL's fused head may project learned positions only, which is unknown for this version: all are counted")
        return False
    return bool(utils._use_triton(model.device))


def _files_of(function: Any) -> Iterator[str]:
    """The source files of a function and of the functions that it wraps: accelerate wraps a model's forward pass."""
    while function is not None:
        yield getattr(getattr(function, "__code__", None), "co_filename", "")
        function = getattr(function, "__wrapped__", None)


def with_projected(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a call of the model, and the number of positions that its head projects: a tensor [], not read back."""
    shifted, labels = call.get("shift_labels"), call.get("labels")
    if not call.get("fused_lm_head") or (shifted is None and labels is None):
        return call
    learned = labels[:, 1:] if shifted is None else shifted  # type: ignore[index]
    return {**call, PROJECTED: (learned != NO_LABEL).sum()}
