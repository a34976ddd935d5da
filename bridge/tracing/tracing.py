"""Any module as a plan: it runs forward and backward at a few small lengths, and every matrix product becomes a term."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bridge.flops import frameworks
from bridge.flops.reading import Model
from bridge.flops.shapes import ConfigError
from bridge.flops.terms import Pass
from bridge.tracing import feeds, huggingface, live
from bridge.tracing.contexts import Contexts
from bridge.tracing.feeds import Feed, Inputs
from bridge.tracing.images import takes_images
from bridge.tracing.progress import Progress
from bridge.tracing.recording import Op, Recorder
from bridge.tracing.solving import Bases, Monomial, Point, Polynomial, Scale, Solver, constant
from bridge.tracing.terms import Names, Solved, priced, terms_of, unread

#: Monomials of a single dimension (linear), and of the whole work of a module (square).
_LINEAR: tuple[Monomial, ...] = ((0, 0, 0, 0), (1, 0, 0, 0))
_SQUARE: tuple[Monomial, ...] = (*_LINEAR, (2, 0, 0, 0))
_LINEAR_ENCODER: tuple[Monomial, ...] = (*_LINEAR, (0, 1, 0, 0))
_LINEAR_CHUNKS: tuple[Monomial, ...] = (*_LINEAR, (0, 0, 1, 0))
_SQUARE_CHUNKS: tuple[Monomial, ...] = (*_SQUARE, (0, 0, 1, 0), (0, 0, 2, 0), (1, 0, 1, 0))
_SQUARE_ENCODER: tuple[Monomial, ...] = (*_SQUARE, (0, 1, 0, 0), (0, 2, 0, 0), (1, 1, 0, 0))
#: The same for an image whose size is fixed, and for one of any size.
_IMAGE: tuple[Monomial, ...] = ((0, 0, 0, 0),)
_LINEAR_IMAGE: tuple[Monomial, ...] = (*_IMAGE, (0, 0, 0, 1))
_SQUARE_IMAGE: tuple[Monomial, ...] = (*_LINEAR_IMAGE, (0, 0, 0, 2))

#: Chunk sizes of known kernels and poolings, tried after those of the config; negative ones drop a chunk that is not full.
_CHUNKS = (64, 128, 256, 32, 16, 512, 2, 4, 8, -2, -4, -8)
#: Pairs of lengths beyond the first chunk of known kernels, then shorter ones for models with few positions.
_FAR = ((300, 601), (300, 460), (40, 23), (16, 19))
#: Lengths at which chunks of all these sizes differ.
_CHUNKED = (64, 133, 259, 515, 1100)


def trace(model: Any, inputs: Inputs | None = None) -> Model:
    """The plan of a module, or of a Hugging Face config, by running it on the meta device.

    Args:
        model: a ``torch.nn.Module``, which is not changed or moved, or a Hugging Face config as a mapping.
        inputs: maps a ``solving.Point`` to keyword arguments of ``forward``; by default text, images or sound as transformers'
            models take them, and token ids as the first argument of any other module.

    Returns:
        A configuration for ``compile_plan``.  ``not_counted`` names modules whose work is no known function of the lengths.

    Raises:
        ConfigError: The model cannot be built or run.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if not isinstance(model, torch.nn.Module):
        runs, rest = huggingface.what_runs(huggingface.build(model))
        found = _trace(live.prepared(runs), mode, inputs)
        return replace(found, not_counted=(*found.not_counted, *rest))
    with live.untouched(model):
        return _trace(live.copied(model, mode), mode, inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's log of a failed attempt, after which other inputs are tried."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@_quiet()
def _trace(module: torch.nn.Module, mode: FakeTensorMode, inputs: Inputs | None) -> Model:
    """The plan of a module that may be changed."""
    if inputs is not None:
        return Tracer(module, mode, [Feed(inputs)]).model()
    if takes_images(module):
        seen = _with_images(live.copied(module, mode), mode)
        if seen is not None:
            return seen
    return Tracer(module, mode, feeds.of_text(module)).model()


def _with_images(module: torch.nn.Module, mode: FakeTensorMode) -> Model | None:
    """The plan with images; None if the module does not run with any, or if some of what runs could not be solved."""
    for feed in feeds.of_images(module, mode):
        try:
            found = Tracer(module, mode, [feed]).model()
        except ConfigError:
            continue
        if not any(sentence.endswith(_LEFT_OUT) for sentence in found.not_counted):
            return found
    return None


class Tracer:
    """Runs one module at several points and solves for its work.

    Args:
        module: a module without data that may be changed, see ``live``.
        mode: the fake mode in which it runs if it is not on the meta device.
        ways: forms of its inputs; the first that it accepts is used.
    """

    def __init__(self, module: torch.nn.Module, mode: FakeTensorMode, ways: Iterable[Feed]):
        self.module = module
        self.parameters = dict(module.named_parameters())
        self.mode = torch.device("meta") if all(each.is_meta for each in self.parameters.values()) else mode
        self.ways = ways
        self.feed: Feed  # the first of them that the module accepts
        self.weights = {**dict(module.named_buffers()), **self.parameters}
        self.runs: dict[Point, list[Op]] = {}
        self.needed: set[str] = set()
        self.progress = Progress(type(module).__name__)

    def model(self) -> Model:
        """The traced plan.

        Raises:
            ConfigError: The module runs with none of the inputs.
        """
        self._find_a_way()
        solved, sentences = self._solve()
        parameters = self.parameters
        terms = terms_of(solved, parameters, Names.of(self.module), self.needed)
        frozen = tuple(name.removesuffix(".weight") for name, parameter in parameters.items() if not parameter.requires_grad)
        sentences = [*sentences, *unread(solved), *self.feed.unseen(self.module)]
        self.progress.done()
        return Model(traced=terms, freeze=frozen, framework=frameworks.TRANSFORMERS, not_counted=tuple(sentences))

    # ---- running ---------------------------------------------------------------------------------

    def _find_a_way(self) -> None:
        """Find the first inputs that the module accepts; the first run is discarded, since some models change during it."""
        errors = []
        for feed in self.ways:
            self.feed = feed
            try:
                self._run(self._point())
                for point in self._points():
                    self.ops(point)
                return
            except Exception as error:
                errors.append(error)
                self.runs.clear()
        raise self._refusal(errors[0]) from errors[0]

    def _refusal(self, error: Exception) -> ConfigError:
        return ConfigError(f"{type(self.module).__name__} cannot be traced: {type(error).__name__}: {str(error)[:200]}")

    def _point(self, batch: int = 2, length: int = 9, encoder: int = 0, images: int = 1, size: int = 0) -> Point:
        feed = self.feed
        encoder = (encoder or feed.encoder) if feed.encoder else 0
        if not feed.patches:
            return Point(batch, length, encoder)
        return Point(batch, feed.before + length, encoder, images, feed.patches[size % len(feed.patches)])

    def ops(self, point: Point) -> list[Op]:
        """The operations at a point; ConfigError if the module does not run there."""
        if point not in self.runs:
            try:
                self.runs[point] = self._run(point)
            except Exception as error:
                raise self._refusal(error) from error
        return self.runs[point]

    def _run(self, point: Point) -> list[Op]:
        contexts = Contexts()
        self.progress.step()
        fake = isinstance(self.mode, FakeTensorMode)
        with ExitStack() as stack:
            if hasattr(self.module, "config"):
                stack.enter_context(contexts.on())
            values = self.feed.inputs(point) if fake else None
            stack.enter_context(self.mode)
            values = self.feed.inputs(point) if values is None else values
            recorder = contexts.recorder = Recorder(self.module, self.weights, computes=fake)
            with recorder.on():
                out = huggingface.output(self.module(**values))
                if out.requires_grad:
                    out.sum().backward()
        for parameter in self.parameters.values():
            parameter.grad = None
        self.needed |= recorder.needed
        return recorder.ops

    # ---- solving ---------------------------------------------------------------------------------

    def _points(self) -> list[Point]:
        """Short sequences in different numbers and lengths, with other encoder inputs and images where there are any."""
        near = [self._point(), self._point(batch=3, size=1), self._point(length=14, size=2)]
        if self.feed.encoder:
            near += [self._point(encoder=8), self._point(length=14, encoder=8)]
        if self.feed.patches:
            near += [self._point(images=2, size=3), self._point(length=14)]
        return near

    def _far(self) -> list[Point]:
        """Two points longer than a chunk of any known kernel, without which a fit proves nothing about such kernels."""
        for one, other in _FAR:
            far = [self._point(3, one, 2 * self.feed.encoder, 2, 2), self._point(2, other, 3 * self.feed.encoder)]
            try:
                for point in far:
                    self.ops(point)
                return far
            except ConfigError as error:  # positions that end before
                refusal = error
        raise refusal

    def _solve(self) -> tuple[list[Solved], list[str]]:
        points = [*self._points(), *self._far()]
        solved, open_groups = self._fit(points, 1, None)
        if open_groups:
            points += self._at(*_CHUNKED)
        for chunk in self._chunks() if open_groups else ():
            found, left = self._fit(points, chunk, open_groups)
            size = abs(chunk)
            if found and (more := self._at(2 * size - 1, 5 * size - 3)):  # where it would fail if it were another's chunk
                found, left = self._fit([*points, *more], chunk, open_groups)
            solved, open_groups = solved + found, left
            if not open_groups:
                break
        return merged(solved), _sentences(open_groups)

    def _at(self, *lengths: int) -> list[Point]:
        """Points of these lengths, up to the first at which the module does not run."""
        found = []
        for length in lengths:
            try:
                self.ops(point := self._point(length=length, encoder=self.feed.encoder))
                found.append(point)
            except ConfigError:
                break
        return found

    def _chunks(self) -> list[int]:
        """The chunk sizes that the config names, then those of known kernels."""
        config = getattr(self.module, "config", None)
        named = [value for one in (config, getattr(config, "text_config", None)) for value in _chunk_sizes(one)]
        return list(dict.fromkeys((*named, *(-size for size in named), *_CHUNKS)))

    def _bases(self, chunk: int, *, square: bool) -> Bases:
        if self.feed.encoder:
            of_text = _SQUARE_ENCODER if square else _LINEAR_ENCODER
        elif chunk != 1:
            of_text = _SQUARE_CHUNKS if square else _LINEAR_CHUNKS
        else:
            of_text = _SQUARE if square else _LINEAR
        bases: dict[Scale, Sequence[Monomial]] = {Scale.SEQUENCES: of_text}
        if self.feed.patches:
            sizes = _SQUARE_IMAGE if square else _LINEAR_IMAGE
            bases[Scale.IMAGES] = sizes if len(self.feed.patches) > 1 else _IMAGE
        return {**bases, Scale.ONCE: of_text}

    def _fit(self, points: Sequence[Point], chunk: int, only: Sequence[Key] | None) -> tuple[list[Solved], list[Key]]:
        """The operations that are a function of the lengths at all these points, and the groups that are not."""
        runs = [_grouped(self.ops(point)) for point in points]
        keys = list(dict.fromkeys(key for run in runs for key in run)) if only is None else only
        linear, square = (Solver(points, self._bases(chunk, square=square), chunk) for square in (False, True))
        solved, left = [], []
        for key in keys:
            found = _solved([run.get(key, []) for run in runs], linear, square)
            solved += found or []
            left += [] if found else [key]
        return solved, left


#: Operations that are solved together: module, name, weight, pass.
Key = tuple[str, str, str, Pass]


def _grouped(ops: Sequence[Op]) -> dict[Key, list[Op]]:
    groups: dict[Key, list[Op]] = defaultdict(list)
    for op in ops:
        groups[op.path, op.name, op.weight, op.passes].append(op)
    return groups


def _chunk_sizes(config: Any) -> Iterator[int]:
    for name, value in vars(config).items() if config is not None else ():
        if any(part in name for part in ("chunk", "block", "compress")):
            for size in value.values() if isinstance(value, dict) else [value]:
                if isinstance(size, int) and 2 <= size <= 1024:
                    yield size


def _solved(runs: list[list[Op]], linear: Solver, square: Solver) -> list[Solved] | None:
    """One group at all points: each operation by itself if all points have equally many, else their sum."""
    if len({len(run) for run in runs}) == 1:
        found = [_one(ops, linear) for ops in zip(*runs, strict=True)]
        if all(found):
            return [one for one in found if one is not None]
    work = square.fit([sum(prod(op.dims) for op in run) for run in runs])
    if work is None or not priced(work):
        return None
    first = next(run[0] for run in runs if run)
    return [Solved(replace(first, context=None), work, 1, 1, first.passes)]


def _one(ops: Sequence[Op], linear: Solver) -> Solved | None:
    """One operation at all points: the product of its solved dimensions; None if one of them is no function of the lengths."""
    if len({len(op.dims) for op in ops}) > 1:
        return None
    dims = [linear.fit(values) for values in zip(*(op.dims for op in ops), strict=True)]
    work = constant(1)
    for dim in dims:
        if dim is None:
            return None
        work *= dim
    if not priced(work):
        return None
    k, n = _size(ops[0], [dim for dim in dims if dim is not None])
    return Solved(ops[0], work, k, n, ops[0].passes)


def _size(op: Op, dims: Sequence[Polynomial]) -> tuple[int, int]:
    """Two factors that do not depend on the batch: the sides of a weight, or a head's width and the number of heads."""
    sides = [dim.constant for dim in dims[:2] if dim.constant]
    if op.weight:
        sides += [dim.constant for dim in dims[2:] if dim.constant]
        k, n, *_ = (*sides, 1, 1)
        return k, n
    factors = [dim.factor for dim in dims]
    width = sides[0] if sides else 1
    return width, max(1, prod(factors) // width)


def merged(solved: Sequence[Solved]) -> list[Solved]:
    """The operations with forward and backward ones of the same module and work joined into one that has all their passes."""
    result: dict[tuple[Any, ...], list[Solved]] = defaultdict(list)
    for one in sorted(solved, key=lambda one: _ORDER.index(one.passes)):
        alike = result[one.op.path, one.op.name, one.op.weight, one.work.key]
        place = next((i for i, other in enumerate(alike) if one.passes not in other.passes), None)
        if place is None:
            alike.append(one)
        else:
            alike[place] = replace(alike[place], passes=alike[place].passes | one.passes)
    return [one for alike in result.values() for one in alike]


_ORDER = (Pass.FORWARD, Pass.DGRAD, Pass.WGRAD, Pass.RECOMPUTE)


#: The end of a sentence about an operation that could not be solved.
_LEFT_OUT = ": what it runs is no function of the lengths that was found, so it is left out"


def _sentences(keys: Sequence[Key]) -> list[str]:
    paths = dict.fromkeys(path or "the model itself" for path, *_ in keys)
    return [f"{path}{_LEFT_OUT}" for path in paths]
