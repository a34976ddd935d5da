"""``bridge train`` whose routers send every token to the first two experts; arguments are those of the command."""

from __future__ import annotations

import sys
from typing import Any

from bridge.training.engine.initialize import prepare_libraries

prepare_libraries()

import torch  # noqa: E402
from megatron.core.transformer.moe.router import TopKRouter  # noqa: E402

from bridge.cli.main import main  # noqa: E402

gating = TopKRouter.gating


def skewed(router: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Logits as they are, and the first two experts far ahead."""
    logits = gating(router, *args, **kwargs)
    return logits * 0 + torch.tensor([20.0, 19.0, 0.0, 0.0])


TopKRouter.gating = skewed

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
