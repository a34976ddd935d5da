"""megatron-core without Transformer Engine: two names that it uses nevertheless.

Both are faults of the library rather than matters of the device, so they are defined with and without a GPU.
"""

from __future__ import annotations

import importlib.util


class _NoTELinear:
    """Stands for Transformer Engine's linear layer in isinstance(): nothing is one."""


def define() -> None:
    """Define what is missing; nothing happens where Transformer Engine is installed, or the second time."""
    if importlib.util.find_spec("transformer_engine") is not None:
        return
    from megatron.core.transformer import multi_latent_attention
    from megatron.core.transformer.moe import moe_utils

    # The router compares with this name at run time; it is only defined by a successful import.
    moe_utils.te_general_gemm = getattr(moe_utils, "te_general_gemm", None)
    # MLA asks isinstance(layer, TELinear), and TELinear is a mock object, which isinstance() rejects.
    if not isinstance(multi_latent_attention.TELinear, type):
        multi_latent_attention.TELinear = _NoTELinear
