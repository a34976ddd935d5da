"""The passes that TRL's ``GRPOTrainer`` runs without gradients, by phase: generation, and log-probabilities of two models.

``generation``         the policy generates completions: one pass over each prompt, then one token at a time with a KV cache
``log_probabilities``  the policy on prompts and completions, if these are trained on more than once
``reference``          the reference model, or the policy without its adapters (or with a copy of the first ones), on the same

Each sequence counts by its own length, forward pass only.  Completions that a server (vLLM) generates are not counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from bridge.config import from_huggingface
from bridge.integrations import trl_head
from bridge.integrations.wrapping import Arguments, Call, wrap
from bridge.metrics.reduction import PendingSum, collective_device, to_limbs
from bridge.planning.inference import InferencePlan

logger = logging.getLogger(__name__)

PHASES = ("generation", "log_probabilities", "reference")
_KEY = "throughput/forward_flops/"


class Phases:
    """The phases of one trainer.

    Args:
        trainer: a trainer with TRL's ``_generate_single_turn`` and ``_get_per_token_logps_and_entropies``.
        config: prices the policy.
        convention: how FLOPs are counted.

    Raises:
        ConfigError: the model's forward pass cannot be priced.
    """

    def __init__(self, trainer: Any, config: Any, convention: str) -> None:
        self._trainer = trainer
        self._failed = False
        self._sequences: Counter[tuple[str, str, int, int, int]] = Counter()
        """(phase, model, tokens, number of projected tokens, number of tokens generated one by one) -> how often it ran on this
        rank since the last row. 0 projected tokens: all."""
        self._plans = {
            "policy": InferencePlan(config, convention),
            "base": InferencePlan(from_huggingface(trainer.model.config), convention),
        }
        wrap(trainer, "_generate_single_turn", self._around_generation)
        wrap(trainer, "_get_per_token_logps_and_entropies", self._around_scoring)

    def _around_generation(self, call: Call, arguments: Arguments) -> Any:
        result = call()
        if self._trainer.model.training and not getattr(self._trainer, "use_vllm", False):
            self._safely(lambda: self._generated(arguments["prompt_ids"], result[0]))
        return result

    def _generated(self, prompts: Any, completions: Any) -> None:
        for prompt, completion in zip(prompts, completions, strict=True):  # the pass over the prompt gives the first token
            self._sequences["generation", "policy", len(prompt), 1, max(len(completion) - 1, 0)] += 1

    def _around_scoring(self, call: Call, arguments: Arguments) -> Any:
        if self._trainer.model.training and not torch.is_grad_enabled():
            self._safely(lambda: self._scored(arguments["model"], arguments["attention_mask"], arguments["logits_to_keep"]))
        return call()

    def _scored(self, model: Any, mask: torch.Tensor, completion: int) -> None:
        phase, runs = ("reference", "base") if model is self._trainer.ref_model else _asked(model)
        kept = mask[:, -completion:].sum(-1) if self._leaves_out else mask.new_zeros(len(mask))
        for length, projected in torch.stack([mask.sum(-1), kept], 1).tolist():  # TRL has just waited for the same device
            self._sequences[phase, runs, length, projected, 0] += 1

    @cached_property
    def _leaves_out(self) -> bool:
        """Read when the first batch is scored: the model may not be on its device earlier."""
        return trl_head.leaves_out(self._trainer.model)

    def _safely(self, note: Callable[[], None]) -> None:
        try:
            note()
        except Exception as error:  # training continues without these numbers
            logger.warning("passes without gradients are not reported: %s", error)
            self._failed = True

    def row(self) -> dict[str, int]:
        """FLOPs of all ranks by phase since the last row; empty if a rank does not know its own. Call it on every rank."""
        ours: Counter[str] = Counter()
        self._safely(lambda: self._add_to(ours))
        self._sequences.clear()
        limbs = to_limbs([*(ours[phase] for phase in PHASES), int(self._failed)])
        *summed, failed = PendingSum(limbs, device=collective_device()).wait()
        return {} if failed else {_KEY + phase: flops for phase, flops in zip(PHASES, summed, strict=True)}

    def _add_to(self, phases: Counter[str]) -> None:
        for (phase, runs, tokens, kept, generated), times in self._sequences.items():
            phases[phase] += self._price(runs, tokens, kept, generated) * times

    def _price(self, runs: str, tokens: int, kept: int, generated: int) -> int:
        plan = self._plans[runs]
        return int(plan.prefill(tokens, logits_to_keep=kept) + (plan.decode(tokens, generated) if generated else 0))


def watch(trainer: Any, read: Callable[[Any], Any], convention: str) -> Phases | None:
    """The phases of a trainer that has them, its model priced by the result of ``read``; None for any other trainer."""
    if not hasattr(trainer, "_generate_single_turn"):
        return None
    try:
        return Phases(trainer, read(trainer.model), convention)
    except Exception as error:  # training continues without these numbers
        logger.warning("passes without gradients are not reported, because they cannot be priced: %s", error)
        return None


def _asked(policy: Any) -> tuple[str, str]:
    """The phase and the model of a scoring pass: a peft policy without adapters, or with its first ones, is the reference."""
    layers = [module for module in policy.modules() if isinstance(getattr(module, "disable_adapters", None), bool)]
    if any(layer.disable_adapters for layer in layers):
        return "reference", "base"
    return "reference" if any("ref" in layer.active_adapters for layer in layers) else "log_probabilities", "policy"
