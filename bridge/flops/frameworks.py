"""Frameworks are data: how the code that runs a model arranges its layers and its backward passes.

Measured with ``FlopCounterMode`` on megatron-core 0.16.1 and transformers 5.23; ``tests/oracle`` holds them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bridge.flops.shapes import ConfigError


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
        stops_early: the second run of a layer ends with the last tensor that the backward pass asks for.
        dora_by_identity: DoRA multiplies its matrices with an identity matrix instead of with each other (peft).
        sparse_by_mask: sparse attention computes the scores of all keys, in their own width, and masks those not chosen.
        dense_experts: every token goes through every expert, and what the router did not choose is multiplied by zero.
    """

    name: str
    fused: bool = False
    dgrad_with_wgrad: bool = False
    router_backward_is_whole: bool = False
    routing_before_fc2: bool = False
    joint_logits: bool = False
    stops_early: bool = False
    dora_by_identity: bool = False
    sparse_by_mask: bool = False
    dense_experts: bool = False


MEGATRON = Framework(
    "megatron",
    fused=True,
    dgrad_with_wgrad=True,
    router_backward_is_whole=True,
    routing_before_fc2=True,
    joint_logits=True,
)
TRANSFORMERS = Framework("transformers", stops_early=True, dora_by_identity=True, sparse_by_mask=True)
#: transformers' models that fuse their projections themselves (Phi-3).
TRANSFORMERS_FUSED = replace(TRANSFORMERS, name="transformers_fused", fused=True)
#: Llama 4.
TRANSFORMERS_DENSE_EXPERTS = replace(TRANSFORMERS, name="transformers_dense_experts", dense_experts=True)


def _reentrant(framework: Framework) -> Framework:
    """With gradient_checkpointing_kwargs={"use_reentrant": True}."""
    return replace(framework, name=f"{framework.name}_reentrant", stops_early=False)


_TRANSFORMERS = (TRANSFORMERS, TRANSFORMERS_FUSED, TRANSFORMERS_DENSE_EXPERTS)
FRAMEWORKS = {framework.name: framework for framework in (MEGATRON, *_TRANSFORMERS, *map(_reentrant, _TRANSFORMERS))}


def get(name: str) -> Framework:
    """The framework of that name; ConfigError names the known ones."""
    try:
        return FRAMEWORKS[name]
    except KeyError:
        raise ConfigError(f"framework={name!r} is not known; choose one of {', '.join(FRAMEWORKS)}") from None
