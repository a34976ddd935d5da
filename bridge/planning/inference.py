"""Inference: the cost of a request, by the rule of thumb and exactly.

``estimate_flops`` and ``estimate_flops_no_kv_cache`` use only the number of parameters.  ``prefill_and_decode`` uses the forward
terms of a plan.  A decode step needs no separate formulas: with a KV cache it costs what one more token adds to a sequence, that
is, the growth of the plan's statistics from n to n + 1 tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import sub
from typing import Any

from bridge import hardware
from bridge.flops import conventions, reading, transforms
from bridge.flops.components.cross_attention import ENCODER_TOKENS
from bridge.flops.conventions import Convention, Pairs
from bridge.flops.lengths import batch_lengths
from bridge.flops.moments import Number
from bridge.flops.plan import FLOPS_PER_MAC, Plan, compile_plan
from bridge.flops.rows import Cache
from bridge.flops.shapes import ConfigError, ModelShape, whole
from bridge.flops.terms import CAUSAL, Pass, Role, Term
from bridge.planning.kv_cache import entries_after, entries_read, entries_written, layer_caches

#: Tokens of an answer at most: each is counted by itself.
MOST_GENERATED = 2**17

# ---- the rule of thumb ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a published model: all, and those active per token."""

    total: float
    active: float


def _dense(parameters: float) -> ParameterCounts:
    return ParameterCounts(parameters, parameters)


#: Models that telemetry knows by name, in nominal parameters.
MODELS: Mapping[str, ParameterCounts] = {
    "qwen3:8b": _dense(8e9),
    "qwen3:0.6b": _dense(0.6e9),
    "qwen3:4b": _dense(4e9),
    "llama-3.1-70b": _dense(70e9),
    "llama-3.1-8b": _dense(8e9),
    "mistral-7b": _dense(7e9),
    # Two of eight experts per token (arXiv:2401.04088): 47 billion parameters, 13 billion active.
    "mixtral-8x7b": ParameterCounts(47e9, 13e9),
}


def find_parameters(model: str) -> ParameterCounts | None:
    """Parameters of a model by name; None for an unknown one.

    Names are compared word by word and may have more words (``Qwen/Qwen3-8B``, ``llama-3.1-8b-instruct``); the entry
    with the most matching words wins.  Another size of a known family is unknown.
    """
    words = _words(model)
    matches = [name for name in MODELS if _contains(words, _words(name))]
    return MODELS[max(matches, key=lambda name: len(_words(name)))] if matches else None


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9.]+", name.lower())


def _contains(words: list[str], part: list[str]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1))


def estimate_flops(model: str, input_tokens: int, output_tokens: int, *, active: bool = False) -> tuple[float, float]:
    """FLOPs of a request with a KV cache, and per token: two per parameter and token.

    Args:
        model: a name that ``find_parameters`` knows; an unknown one gives zeros.
        input_tokens: tokens of the whole prompt, including any that an engine has cached.
        output_tokens: number of generated tokens.
        active: count the parameters active per token instead of all (they differ for mixtures of experts).
    """
    parameters, tokens = find_parameters(model), input_tokens + output_tokens
    if parameters is None or tokens <= 0:
        return 0.0, 0.0
    per_token = 2.0 * (parameters.active if active else parameters.total)
    return per_token * tokens, per_token


def estimate_flops_no_kv_cache(model: str, input_tokens: int, output_tokens: int, *, active: bool = False) -> tuple[float, float]:
    """FLOPs if every token recomputes all tokens before it, and per token: P N (N + 1) for N tokens.

    The arguments are those of ``estimate_flops``.
    """
    parameters, tokens = find_parameters(model), input_tokens + output_tokens
    if parameters is None or tokens <= 0:
        return 0.0, 0.0
    total = (parameters.active if active else parameters.total) * tokens * (tokens + 1)
    return total, total / tokens


# ---- exactly -------------------------------------------------------------------------------------

#: What one more query computes, as the growth of a statistic.  Exactly: the keys it sees.
_STEP_PAIRS: Pairs = conventions.EXACT.pairs
#: A dense kernel computes all that the cache holds; a cache of a layer with windows or chunks holds no more than one of them.
_DENSE_STEP_PAIRS: Pairs = {
    **conventions.EXECUTED.pairs,
    **dict.fromkeys(("causal", "topk", "indexer"), lambda *_: _STEP_PAIRS["causal"]()),
    "window": _STEP_PAIRS["window"],
    "chunk": _STEP_PAIRS["window"],
}


def step_pairs(record: Convention) -> Pairs:
    """The pairs whose growth one more query costs in a convention."""
    return _DENSE_STEP_PAIRS if record is conventions.EXECUTED else _STEP_PAIRS


@dataclass(frozen=True)
class MemoryTraffic:
    """Bytes of a number, by where it lives.

    Attributes:
        weight: bytes per weight (2 for bfloat16, 1 for FP8, 0.5 for 4-bit formats).
        cache: bytes per number of a key, value or latent.
        state: bytes per number of a recurrent state, which kernels keep in float32.
    """

    weight: float = 2
    cache: float = 2
    state: float = 4


@dataclass(frozen=True)
class Roofline:
    """The shortest time that a device allows if only its peak and its memory bandwidth limit it.

    Attributes:
        time_to_first_token: time of the prefill in s.
        decode_time: time of all steps after it in s.
        tokens_per_second: tokens generated per second after the first, over all requests of the batch; None without such steps.
        mfu: FLOPs over peak x time, as fractions for prefill, decode and both.
        mbu: bytes over bandwidth x time, likewise.
        prefill_bound, decode_bound: ``compute`` or ``memory``, whichever takes more time.
    """

    time_to_first_token: float
    decode_time: float
    tokens_per_second: float | None
    mfu: tuple[float, ...]
    mbu: tuple[float, ...]
    prefill_bound: str
    decode_bound: str

    @property
    def total_time(self) -> float:
        """s, the whole request."""
        return self.time_to_first_token + self.decode_time


@dataclass(frozen=True)
class Generation:
    """The cost of reading a prompt and writing an answer.  FLOPs and bytes are those of the whole batch.

    The pass over the prompt yields the first token, so ``generated_tokens`` need one pass fewer after it.

    Attributes:
        prompt_tokens, generated_tokens: tokens of each request.
        batch_size: number of requests that run together.
        kv_cache: False if every pass recomputes the whole sequence.
        convention: how FLOPs were counted.
        prefill: FLOPs of the pass over the prompt.
        steps: FLOPs of each pass after it.
        prefill_bytes: bytes that the prefill moves: weights read, cache written.
        step_bytes: bytes that each later pass moves: weights and cache read, cache written.
        weight_bytes: bytes of all weights.
        cache_bytes: bytes of the cache at the end.
        not_counted: parts of the model that are not priced.
    """

    prompt_tokens: int
    generated_tokens: int
    batch_size: int
    kv_cache: bool
    convention: str
    prefill: Number
    steps: tuple[Number, ...]
    prefill_bytes: int
    step_bytes: tuple[int, ...]
    weight_bytes: int
    cache_bytes: int
    not_counted: tuple[str, ...] = ()

    @property
    def decode(self) -> Number:
        """FLOPs of all passes after the first."""
        return sum(self.steps)

    @property
    def total(self) -> Number:
        """FLOPs of the request."""
        return self.prefill + self.decode

    @property
    def per_step(self) -> Number | float:
        """Mean FLOPs of the passes after the first; 0 if there are none."""
        return self.decode / len(self.steps) if self.steps else 0

    @property
    def decode_bytes(self) -> int:
        """Bytes moved by all passes after the first."""
        return sum(self.step_bytes)

    def roofline(
        self,
        device_name: str,
        number_format: str = "bf16",
        num_devices: int = 1,
        *,
        peak_flops: float | None = None,
        bandwidth: float | None = None,
    ) -> Roofline:
        """The bound that a device sets: every pass takes as long as its FLOPs or its bytes require, whichever is longer.

        Args:
            device_name: as torch reports it.
            number_format: format of the matmuls.
            num_devices: number of devices that share every pass without loss.
            peak_flops, bandwidth: FLOP/s and byte/s of one device, overriding the table.

        Raises:
            ConfigError: The device or one of its rates is unknown.
        """
        if num_devices <= 0:
            raise ConfigError(f"num_devices={num_devices} must be positive")
        peak = hardware.peak_flops(device_name, number_format) if peak_flops is None else peak_flops
        rate = hardware.peak_bandwidth(device_name) if bandwidth is None else bandwidth
        for value, what, option in ((peak, f"{number_format} peak", "peak_flops"), (rate, "memory bandwidth", "bandwidth")):
            if not value or value <= 0:
                raise ConfigError(f"device_name={device_name!r}: its {what} is not known; give {option}")
        assert peak is not None
        assert rate is not None
        peak, rate = peak * num_devices, rate * num_devices
        passes = [(self.prefill, self.prefill_bytes), *zip(self.steps, self.step_bytes, strict=True)]
        times = [max(float(flops) / peak, size / rate) for flops, size in passes]
        first, rest = times[0], sum(times[1:])
        spans = (first, rest, first + rest)

        def shares(amounts: tuple[float, float], limit: float) -> tuple[float, ...]:
            work = (*amounts, sum(amounts))
            # What sets the time is 1, and not a rounding error more.
            return tuple(min(a / limit / time, 1.0) if time else 0.0 for a, time in zip(work, spans, strict=True))

        def bound(flops: Number, size: int) -> str:
            return "compute" if float(flops) / peak >= size / rate else "memory"

        return Roofline(
            time_to_first_token=first,
            decode_time=rest,
            tokens_per_second=len(self.steps) * self.batch_size / rest if rest else None,
            mfu=shares((float(self.prefill), float(self.decode)), peak),
            mbu=shares((self.prefill_bytes, self.decode_bytes), rate),
            prefill_bound=bound(self.prefill, self.prefill_bytes),
            decode_bound=bound(self.decode, self.decode_bytes),
        )


class InferencePlan:
    """A model that generates: forward passes over whole sequences, and over one more token.

    It leaves out what runs only in training: multi-token prediction, teachers and reference models.

    Attributes:
        full: the plan of a pass over whole sequences.
        step: the plan whose statistics grow by the cost of one more token.
        caches: the cache of each decoder layer.
    """

    def __init__(self, cfg: Any, convention: str = "exact", *, latents: str | None = None):
        """Compile a configuration.

        Args:
            cfg: as for ``compile_plan``.
            convention: ``exact``, or ``executed`` for what a dense kernel with a KV cache runs, or any other.
            latents: how a decode step uses the cached latents of latent attention, a key of ``LATENTS``; by default
                ``expanded`` under ``executed``, as in transformers, and ``once`` otherwise.
        """
        model = reading.read(cfg)
        shape, cfg = model.shape, model
        if model.language is None:
            raise ConfigError("this is not a language model that generates token by token: count passes with bridge flops")
        if not shape.is_causal:
            raise ConfigError("model.is_causal=False: a model whose tokens see later tokens does not generate")
        record = conventions.get(convention)
        dense = record is conventions.EXECUTED
        self.full = _forward_plan(cfg, record)
        growing = replace(record, pairs=step_pairs(record))
        edit = _latent_edit(latents or ("expanded" if dense else "once"))
        self.step = _forward_plan(cfg, growing, lambda terms: edit(terms, shape))
        self.caches: list[Cache] = [cache for caches in layer_caches(shape) for cache in caches]
        self._alike = Counter(self.caches)
        self._built = _forward_plan(cfg, conventions.EXACT).terms
        self._head = sum(FLOPS_PER_MAC * term.k * term.n for term in self.full.terms if Role.OUTPUT in term.roles)

    def prefill(self, tokens: int, *, logits_to_keep: int = 0, **inputs: Iterable[int]) -> Number:
        """FLOPs of a pass over a whole sequence.

        Args:
            tokens: its length.
            logits_to_keep: number of last positions that the output layer computes; 0 for all.
            inputs: ``image_patches`` and other arguments of ``Plan.measure``.
        """
        skipped = max(tokens - logits_to_keep, 0) if logits_to_keep else 0
        return self.full.evaluate(self.full.measure([tokens], **inputs), "forward") - skipped * self._head

    def prefill_behind(self, cached: int, new: int, *, logits_to_keep: int = 0) -> Number:
        """FLOPs of a pass over ``new`` tokens after ``cached`` tokens that are already in a KV cache (prefix caching).

        The output layer computes the last ``logits_to_keep`` of the new positions; 0 means all.
        """
        skipped = max(new - logits_to_keep, 0) if logits_to_keep else 0
        return self.decode(cached, new) - skipped * self._head

    def decode(self, cached: int, new: int = 1, **inputs: Iterable[int]) -> Number:
        """FLOPs of ``new`` tokens, one after the other, after ``cached`` ones in a KV cache."""
        before, after = (self.step.measure([n], **inputs) for n in (cached, cached + new))
        return self.step.evaluate(list(map(sub, after, before)), "forward")

    def weight_entries(self, tokens: int | None = None, *, images: bool = True, encoder: bool | None = None) -> float:
        """How many weights a pass over ``tokens`` tokens of all requests reads; all weights if ``tokens`` is None.

        Routed experts count by the expected number that this many tokens reach if all experts are equally likely, embeddings
        by the rows that are looked up.  Without ``images`` the vision tower is left out; without ``encoder`` (default:
        ``images``) so are the encoder and the projections of its states to keys and values.
        """
        skipped = Role.NONE if images else Role.IMAGES
        if not (images if encoder is None else encoder):
            skipped |= Role.ENCODER
        return sum(_entries(term, tokens) for term in self._built if not term.roles & skipped)

    def cache_bytes(self, tokens: int, memory: MemoryTraffic = MemoryTraffic(), encoder_tokens: int = 0) -> float:
        """Bytes of one request's cache after ``tokens`` tokens."""
        return sum(
            layers * entries_after(cache, tokens, encoder_tokens) * _size(cache, memory) for cache, layers in self._alike.items()
        )

    def step_cache_bytes(self, position: int, memory: MemoryTraffic = MemoryTraffic(), encoder_tokens: int = 0) -> float:
        """Bytes of cache that the token at ``position`` (from 1) reads and writes."""
        return sum(
            layers * (entries_read(cache, position, encoder_tokens) + entries_written(cache, position)) * _size(cache, memory)
            for cache, layers in self._alike.items()
        )


def prefill_and_decode(
    cfg: Any,
    prompt_tokens: int,
    generated_tokens: int,
    kv_cache: bool = True,
    *,
    batch_size: int = 1,
    image_patches: Sequence[int] = (),
    encoder_tokens: int = 0,
    audio_frames: Sequence[int] = (),
    convention: str = "exact",
    logits_to_keep: int = 0,
    latents: str | None = None,
    memory: MemoryTraffic = MemoryTraffic(),
    cached_tokens: int = 0,
) -> Generation:
    """FLOPs and bytes of a request: the prompt in one pass, then one pass for each further token.

    Args:
        cfg: as for ``compile_plan``.
        prompt_tokens: tokens of the prompt, including those of its images.
        generated_tokens: tokens of the answer; the pass over the prompt gives the first one.
        kv_cache: if False, every token recomputes the whole sequence.
        batch_size: number of equal requests that run together and share the reading of the weights.
        image_patches: patches of each image in the prompt.
        encoder_tokens: tokens that an encoder reads before the decoder starts (T5); by default the positions of
            ``audio_frames``.
        audio_frames: mel frames of each clip.
        convention: how to count FLOPs; ``executed`` is what a dense kernel runs.
        logits_to_keep: positions of the prompt that the output layer computes; 0 for all, 1 as in engines.
        latents: how MLA's decode steps use the cached latents, a key of ``LATENTS``: ``once`` counts the model's FLOPs;
            engines run ``absorbed``, transformers ``expanded`` (the default under ``executed``).
        memory: bytes per number of weights, cache and states.
        cached_tokens: leading tokens of the prompt whose keys and values an engine has cached (prefix caching).

    Raises:
        ConfigError: A number is impossible, or the model does not generate.
    """
    _check_cached(cached_tokens, prompt_tokens, kv_cache, bool(image_patches or encoder_tokens or audio_frames))
    for name, value, least in (
        ("prompt_tokens", prompt_tokens, 1),
        ("generated_tokens", generated_tokens, 0),
        ("batch_size", batch_size, 1),
        ("logits_to_keep", logits_to_keep, 0),
        ("encoder_tokens", encoder_tokens, 0),
    ):
        whole(name, value, least)
    if generated_tokens > MOST_GENERATED:
        raise ConfigError(
            f"generated_tokens={generated_tokens} must be at most {MOST_GENERATED}: each token is counted by itself"
        )
    plan = InferencePlan(cfg, convention, latents=latents)
    inputs = {
        "image_patches": tuple(image_patches),
        "encoder_lengths": (encoder_tokens,) if encoder_tokens else (),
        "audio_frames": tuple(audio_frames),
    }
    crossed = ENCODER_TOKENS.sum(batch_lengths([prompt_tokens], **inputs)["encoder"])
    lengths = range(prompt_tokens + 1, prompt_tokens + generated_tokens)

    def whole_bytes(tokens: int) -> float:
        written = plan.cache_bytes(tokens, memory, crossed) if kv_cache else 0
        weights = plan.weight_entries(batch_size * tokens, images=bool(image_patches), encoder=bool(crossed))
        return memory.weight * weights + batch_size * written

    if kv_cache:
        weights = memory.weight * plan.weight_entries(batch_size, images=False)
        steps = tuple(batch_size * plan.decode(length - 1, 1, **inputs) for length in lengths)
        step_bytes = tuple(round(weights + batch_size * plan.step_cache_bytes(length, memory, crossed)) for length in lengths)
    else:
        steps = tuple(batch_size * plan.prefill(length, logits_to_keep=logits_to_keep, **inputs) for length in lengths)
        step_bytes = tuple(round(whole_bytes(length)) for length in lengths)
    last = prompt_tokens + max(generated_tokens - 1, 0)
    prefill, prefill_bytes = plan.prefill(prompt_tokens, logits_to_keep=logits_to_keep, **inputs), whole_bytes(prompt_tokens)
    if cached_tokens:
        new = prompt_tokens - cached_tokens
        prefill = plan.prefill_behind(cached_tokens, new, logits_to_keep=logits_to_keep)
        moved = plan.cache_bytes(prompt_tokens, memory)  # cached entries are read, the rest are written
        prefill_bytes = memory.weight * plan.weight_entries(batch_size * new, images=False) + batch_size * moved
    return Generation(
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        batch_size=batch_size,
        kv_cache=kv_cache,
        convention=convention,
        prefill=batch_size * prefill,
        steps=steps,
        prefill_bytes=round(prefill_bytes),
        step_bytes=step_bytes,
        weight_bytes=round(memory.weight * plan.weight_entries()),
        cache_bytes=round(batch_size * plan.cache_bytes(last, memory, crossed)) if kv_cache else 0,
        not_counted=plan.full.not_counted,
    )


def _check_cached(cached: int, prompt: int, kv_cache: bool, other_inputs: bool) -> None:
    whole("cached_tokens", cached, 0)
    if not cached:
        return
    if cached >= prompt:
        raise ConfigError(f"cached_tokens={cached} must be fewer than prompt_tokens={prompt}: the last token always runs")
    if not kv_cache or other_inputs:
        raise ConfigError(f"cached_tokens={cached} needs a KV cache and a text-only prompt")


# ---- terms of inference --------------------------------------------------------------------------


def _forward_plan(cfg: Any, record: Convention, edit: Callable[[list[Term]], list[Term]] = list) -> Plan:
    """The plan of what runs without training."""
    whole = compile_plan(cfg, record)
    terms = edit([term for term in whole.terms if _runs(term)])
    return Plan(record, terms, whole.not_counted, transforms.everything, lambda how: terms)


def _runs(term: Term) -> bool:
    return Pass.FORWARD in term.allowed and Role.TRAINING_ONLY not in term.roles


def _once(terms: list[Term], shape: ModelShape) -> list[Term]:
    return terms


def _expanded(terms: list[Term], shape: ModelShape) -> list[Term]:
    # One more token: as many latents as a causal query sees keys.
    return [replace(term, rows=CAUSAL) if Role.LATENT_UP in term.roles else term for term in terms]


def _absorbed(terms: list[Term], shape: ModelShape) -> list[Term]:
    # The up projection moves to the queries and to the output at equal cost; the cores get wider.
    widths = {Role.LATENT_KEYS: shape.kv_lora_rank + shape.qk_pos_emb_head_dim, Role.LATENT_VALUES: shape.kv_lora_rank}

    def absorbed(term: Term) -> Term:
        return next((replace(term, k=width) for role, width in widths.items() if role in term.roles), term)

    return list(map(absorbed, terms))


#: What a decode step does with cached latents (MLA).  ``once``: model FLOPs, keys and values are projected from each latent
#: once; ``expanded``: from all of them in every step; ``absorbed``: never, heads attend to the latents themselves.
LATENTS: Mapping[str, Callable[[list[Term], ModelShape], list[Term]]] = {
    "once": _once,
    "expanded": _expanded,
    "absorbed": _absorbed,
}


def _latent_edit(name: str) -> Callable[[list[Term], ModelShape], list[Term]]:
    if name not in LATENTS:
        raise ConfigError(f"latents={name!r} is not known; choose one of {', '.join(LATENTS)}")
    return LATENTS[name]


def _entries(term: Term, tokens: int | None) -> float:
    """Numbers of a term's weight and bias that a pass over ``tokens`` tokens reads; all that are stored when None."""
    one = term.weight * term.k * term.n + term.bias
    if tokens is None:
        return 0 if term.tied else one * term.copies
    if Role.LOOKED_UP in term.roles:
        return 0 if term.tied else min(term.k, tokens) * term.n
    return one * experts_met(term.copies, term.active_copies, tokens)


def experts_met(experts: int, topk: int, tokens: int) -> float:
    """Expected number of different experts for a number of tokens, if all are equally likely; top-k for one token."""
    return topk if tokens == 1 or topk == experts else experts * (1 - (1 - topk / experts) ** tokens)


def _size(cache: Cache, memory: MemoryTraffic) -> float:
    return memory.state if cache.is_state else memory.cache
