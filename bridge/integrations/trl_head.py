"""TRL's fused head: a causal model whose output layer and loss are one, called with ``fused_lm_head=True``.

Where Triton runs it projects only the positions whose next label is not -100, elsewhere all of them.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Mapping
from typing import Any

from bridge.metrics.batch_lengths import PROJECTED

logger = logging.getLogger(__name__)

#: What a label of a position is from which nothing is learned.
_NO_LABEL = -100


def leaves_out(model: Any) -> bool:
    """Whether a model has such a head, on a device where it leaves positions out."""
    utils: Any = sys.modules.get("trl.trainer.utils")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = inspect.unwrap(inner.forward, stop=lambda one: hasattr(one, "__self__"))
    code = getattr(getattr(forward, "__func__", forward), "__code__", None)
    if utils is None or code is None or code.co_filename != utils.__file__:
        return False
    runs_triton = getattr(utils, "_use_triton", None)
    if runs_triton is None:
        logger.warning("TRL's fused head may project learned positions only, and this version does not say: all are counted")
        return False
    return bool(runs_triton(model.device))


def with_projected(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a call of the model, and how many positions its head projects: a tensor [], not read back."""
    if not call.get("fused_lm_head"):
        return call
    shifted, labels = call.get("shift_labels"), call.get("labels")
    if shifted is None and labels is None:
        return call
    learned = labels[:, 1:] if shifted is None else shifted  # type: ignore[index]
    return {**call, PROJECTED: (learned != _NO_LABEL).sum()}
