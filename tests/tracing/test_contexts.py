"""Which keys a query sees, by transformers' own mask functions."""

import pytest

pytest.importorskip("transformers")

from transformers import masking_utils as masks

from bridge.flops.terms import CAUSAL, Context
from bridge.tracing.contexts import context_of


@pytest.mark.parametrize(
    ("sees", "sizes", "context"),
    [
        (masks.causal_mask_function, (20,), CAUSAL),
        (masks.sliding_window_causal_mask_function(20), (20, 64), Context("window", (20,))),
        (masks.bidirectional_mask_function, (20,), Context("bidirectional")),
        (masks.sliding_window_bidirectional_mask_function(20), (21, 20), Context("bidirectional_window", (21,))),
        (masks.sliding_window_bidirectional_mask_function(20), (20,), Context("bidirectional_window", (21,))),
        (lambda b, h, q, k: (k <= q) & (k // 32 == q // 32), (32,), Context("chunk", (32,))),
        (lambda b, h, q, k: (k <= q) & (k % 2 == 0), (32,), None),
        (masks.sliding_window_causal_mask_function(20), (), None),
        (masks.sliding_window_causal_mask_function(2**16), (2**16,), Context("window", (2**16,))),
        # Of a longer one only the beginning is looked at, where it hides nothing.
        (masks.sliding_window_causal_mask_function(2**16 + 1), (2**16 + 1,), CAUSAL),
    ],
)
def test_a_context_is_read_from_the_values_of_a_mask(sees, sizes, context):
    assert context_of(sees, sizes) == context
