"""Frameworks are data: how the code that runs a model lays out its layers and its backward passes.

Measured with ``FlopCounterMode`` on megatron-core 0.16.1 and transformers 5.23; ``tests/oracle`` holds them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bridge.flops.model_shape import ConfigError


@dataclass(frozen=True)
class Framework:
    """What differs between the frameworks that run a model.

    Attributes:
        name: what configurations call it.
        fused: q, k and v in one matmul, gate and values in one.
        dgrad_with_wgrad: the backward of a linear layer that has anything to train computes the gradient of its input too,
            whether or not anything below needs it. megatron-core's autograd functions do, plain autograd does not.
        router_backward_is_whole: the router's backward computes both gradients as soon as it runs (RouterGatingLinear).
        routing_before_fc2: routing weights multiply the experts' activations, not their outputs.
        joint_logits: the hidden states of the decoder and of all MTP depths go through the output layer as one tensor, so
            that all of them get a gradient if one needs it.
    """

    name: str
    fused: bool
    dgrad_with_wgrad: bool
    router_backward_is_whole: bool
    routing_before_fc2: bool
    joint_logits: bool


MEGATRON = Framework("megatron", True, True, True, True, True)
TRANSFORMERS = Framework("transformers", False, False, False, False, False)
#: transformers' models that fuse their projections themselves (Phi-3).
TRANSFORMERS_FUSED = replace(TRANSFORMERS, name="transformers_fused", fused=True)

FRAMEWORKS = {framework.name: framework for framework in (MEGATRON, TRANSFORMERS, TRANSFORMERS_FUSED)}


def get(name: str) -> Framework:
    """The framework of that name; ConfigError names the known ones."""
    try:
        return FRAMEWORKS[name]
    except KeyError:
        raise ConfigError(f"framework={name!r} is not known; choose one of {', '.join(FRAMEWORKS)}") from None
