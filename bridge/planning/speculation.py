"""Decoding with a draft: a small model proposes tokens, the large one checks them all in one pass.

Leviathan et al., arXiv:2211.17192: with a probability of acceptance a of each token and g proposals, a pass yields
1 + a + a^2 + ... + a^g tokens on average; the last of them is the large model's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from bridge.flops.moments import Number
from bridge.flops.shapes import ConfigError, whole
from bridge.planning.inference import InferencePlan, MemoryTraffic

#: Weights and cache of two bytes per number.
HALF = MemoryTraffic()


@dataclass(frozen=True)
class Speculation:
    """The cost of an answer with speculative decoding, after its first token.  FLOPs and bytes are of the whole batch.

    Attributes:
        tokens_per_pass: tokens that a pass of the large model yields on average.
        passes: number of passes of the large model.
        target, draft: FLOPs of the large model and of the draft, pass by pass.
        target_bytes, draft_bytes: bytes that they move, pass by pass.
    """

    tokens_per_pass: Fraction
    passes: int
    target: tuple[Number, ...]
    draft: tuple[Number, ...]
    target_bytes: tuple[float, ...]
    draft_bytes: tuple[float, ...]

    @property
    def flops(self) -> Number:
        """FLOPs of both models."""
        return sum(self.target) + sum(self.draft)

    def time(self, peak_flops: float, bandwidth: float) -> float:
        """A lower bound in seconds: a pass takes as long as its FLOPs or its bytes, whichever is longer."""
        work = (*zip(self.target, self.target_bytes, strict=True), *zip(self.draft, self.draft_bytes, strict=True))
        return sum(max(float(flops) / peak_flops, size / bandwidth) for flops, size in work)


def tokens_per_pass(acceptance: Fraction, proposals: int) -> Fraction:
    """Average number of tokens that a pass yields."""
    return sum((acceptance**number for number in range(proposals + 1)), Fraction(0))


def speculate(
    target: InferencePlan,
    draft: InferencePlan,
    prompt_tokens: int,
    generated_tokens: int,
    *,
    proposals: int,
    acceptance: Fraction | float,
    batch_size: int = 1,
    memory: MemoryTraffic = HALF,
) -> Speculation:
    """The passes that follow the prompt's.

    Args:
        target, draft: the two models.
        prompt_tokens, generated_tokens: of each request; the first generated token comes out of the pass over the prompt.
        proposals: tokens that the draft proposes before each check.
        acceptance: the fraction of proposals that the large model would have made too.
        batch_size: equal requests that run together.
        memory: bytes of weights, cache and states, of both models.

    Raises:
        ConfigError: a number is impossible.
    """
    for name, value in (("prompt_tokens", prompt_tokens), ("proposals", proposals), ("batch_size", batch_size)):
        whole(name, value)
    whole("generated_tokens", generated_tokens, 0)
    if not 0 <= acceptance <= 1:
        raise ConfigError(f"acceptance={float(acceptance):g} must be a fraction of the proposals, from 0 to 1")
    each = tokens_per_pass(Fraction(acceptance), proposals)
    passes = ceil(max(generated_tokens - 1, 0) / each)
    # After the prompt and the tokens of the earlier passes.
    starts = [prompt_tokens + int(number * each) for number in range(passes)]

    def flops(plan: InferencePlan, tokens: int) -> tuple[Number, ...]:
        return tuple(batch_size * plan.decode(start, tokens) for start in starts)

    def moved(plan: InferencePlan, start: int, tokens: int) -> float:
        weights = memory.weight * plan.weight_entries(batch_size * tokens, images=False)
        return weights + batch_size * pass_cache_bytes(plan, start, tokens, memory)

    def proposed(start: int) -> float:
        return sum(moved(draft, start + number, 1) for number in range(proposals))

    return Speculation(
        tokens_per_pass=each,
        passes=passes,
        target=flops(target, proposals + 1),
        draft=flops(draft, proposals),
        target_bytes=tuple(moved(target, start, proposals + 1) for start in starts),
        draft_bytes=tuple(map(proposed, starts)),
    )


def pass_cache_bytes(plan: InferencePlan, cached: int, new: int, memory: MemoryTraffic = HALF) -> float:
    """Bytes of one request's cache that a pass over ``new`` tokens behind ``cached`` ones reads once and writes."""
    # A pass over one token reads what its first token sees, and writes one entry; each further token writes one more.
    return (
        plan.step_cache_bytes(cached + 1, memory) + plan.cache_bytes(cached + new, memory) - plan.cache_bytes(cached + 1, memory)
    )
