"""Ground truth: the operations that ``FlopCounterMode`` sees while a model runs.

The counter looks at the kernels that torch dispatches.  It knows the matrix multiplications and convolutions, and the
fused attention of GPUs.  Some kernels it does not know, or counts wrongly, are given their operations here:

``_grouped_mm``
    the experts of a mixture in one call; every row meets the matrix of one expert, so it is a matmul of all rows.
``_scaled_dot_product_flash_attention_for_cpu`` and its backward
    fused attention on the CPU: two matmuls forward, four backward (queries, keys, probabilities, values), the same that
    the unfused attention runs; the recomputed scores are not model FLOPs.
``addmm_`` and its kin
    a product that is added in place; torch knows those that are not in place.
``convolution_backward``
    torch 2.13 forgets the groups of a grouped (depthwise) convolution in the gradient of the weight.

The models below run eager attention and batched expert matmuls wherever they can, which need none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

aten = torch.ops.aten


def _grouped_mm(rows: Any, weights: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    # In the gradient of the weights both are matrices, with the rows in the middle: the same product of sizes.
    return 2 * prod(rows) * weights[-1]


def _added_in_place(to: Any, rows: Any, weights: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * prod(rows) * weights[-1]


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * sdpa_flop_count(query, key, value)


def _convolution_backward(
    gradient: Any, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: Any, output_mask: Any, out_shape: Any = None,
) -> int:  # fmt: skip
    forward = conv_flop_count(x, weight, gradient, transposed)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))


KERNELS = {
    aten.addmm_: _added_in_place,
    aten.baddbmm_: _added_in_place,
    aten._grouped_mm: _grouped_mm,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.convolution_backward: _convolution_backward,
}


def count(run: Callable[[], Any]) -> int:
    """The floating-point operations of the matmuls that run while ``run`` is called."""
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        run()
    return counter.get_total_flops()
