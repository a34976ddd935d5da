"""Two names that megatron-core uses even if Transformer Engine is not installed.

Both are faults of the library and do not depend on the device, so they are defined with and without a GPU.
"""

from __future__ import annotations

import importlib.util


class _NoTELinear:
    """Replaces Transformer Engine's linear layer in isinstance(): nothing is an instance."""


def define() -> None:
    """Define the missing names; does nothing if Transformer Engine is installed or if they are defined."""
    if importlib.util.find_spec("transformer_engine") is not None:
        return
    from megatron.core.transformer import multi_latent_attention
    from megatron.core.transformer.moe import moe_utils

    # The router compares with this name at run time; it is only defined by a successful import.
    moe_utils.te_general_gemm = getattr(moe_utils, "te_general_gemm", None)
    # MLA asks isinstance(layer, TELinear), and TELinear is a mock object, which isinstance() rejects.
    if not isinstance(multi_latent_attention.TELinear, type):
        multi_latent_attention.TELinear = _NoTELinear
