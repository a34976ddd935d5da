"""Any module as a plan: it runs forward and backward at a few small lengths, and every matrix product becomes a term."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bridge.flops import frameworks
from bridge.flops.reading import Model
from bridge.flops.shapes import ConfigError
from bridge.flops.terms import Pass
from bridge.tracing import huggingface, live
from bridge.tracing.contexts import Contexts
from bridge.tracing.recording import Op, Recorder
from bridge.tracing.solving import Monomial, Point, Polynomial, constant, fit
from bridge.tracing.terms import Names, Solved, priced, terms_of, unread

#: What a dimension may be made of, and what all the work of a module may be.
_LINEAR: tuple[Monomial, ...] = ((0, 0, 0), (1, 0, 0))
_SQUARE: tuple[Monomial, ...] = (*_LINEAR, (2, 0, 0))
_LINEAR_ENCODER: tuple[Monomial, ...] = (*_LINEAR, (0, 1, 0))
_LINEAR_CHUNKS: tuple[Monomial, ...] = (*_LINEAR, (0, 0, 1))
_SQUARE_CHUNKS: tuple[Monomial, ...] = (*_SQUARE, (0, 0, 1), (0, 0, 2), (1, 0, 1))
_SQUARE_ENCODER: tuple[Monomial, ...] = (*_SQUARE, (0, 1, 0), (0, 2, 0), (1, 1, 0))

#: Chunks of known kernels, after what a config names.
_CHUNKS = (64, 128, 256, 32, 16, 512)


def trace(model: Any, inputs: huggingface.Inputs | None = None) -> Model:
    """The plan of a module, or of a Hugging Face config, by running it without memory.

    Args:
        model: a ``torch.nn.Module``, which stays as it is and where it is; or a Hugging Face config as a mapping.
        inputs: ``solving.Point`` -> keyword arguments of ``forward``; by default text, as transformers' models take it.

    Returns:
        What ``compile_plan`` takes.  ``not_counted`` names the modules whose work is no function of the lengths that was found.

    Raises:
        ConfigError: it cannot be built, or not be run.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if isinstance(model, torch.nn.Module):
        return Tracer(live.copied(model, mode), mode, inputs).model()
    return Tracer(live.prepared(huggingface.build(model)), mode, inputs).model()


class Tracer:
    """One module, ours and without data, that is run at several points."""

    def __init__(self, module: torch.nn.Module, mode: FakeTensorMode, inputs: huggingface.Inputs | None = None):
        self.module = module
        self.mode = torch.device("meta") if live.is_on_meta(module) else mode
        self.inputs = inputs
        self.parameters = dict(module.named_parameters())
        self.weights = {**dict(module.named_buffers()), **self.parameters}
        self.runs: dict[Point, list[Op]] = {}
        self.encoder = 5 if huggingface.takes_encoder(module) else 0

    def model(self) -> Model:
        """Trace, solve, check."""
        self._find_a_way()
        solved, sentences = self._solve()
        parameters = self.parameters
        terms = terms_of(solved, parameters, Names.of(self.module))
        frozen = tuple(name.removesuffix(".weight") for name, parameter in parameters.items() if not parameter.requires_grad)
        return Model(traced=terms, freeze=frozen, framework=frameworks.TRANSFORMERS, not_counted=(*sentences, *unread(solved)))

    # ---- running ---------------------------------------------------------------------------------

    def _find_a_way(self) -> None:
        """The first way of giving it text that it takes; that run is thrown away, since some models change in their first."""
        errors = []
        for inputs in [self.inputs] if self.inputs else huggingface.ways(self.module):
            self.inputs = inputs
            try:
                self._run(self._point())
                return
            except Exception as error:
                errors.append(error)
        raise self._refusal(errors[0])

    def _refusal(self, error: Exception) -> ConfigError:
        refusal = ConfigError(f"{type(self.module).__name__} cannot be traced: {type(error).__name__}: {str(error)[:200]}")
        refusal.__cause__ = error
        return refusal

    def _point(self, batch: int = 2, length: int = 9, encoder: int = 0) -> Point:
        return Point(batch, length, encoder or self.encoder)

    def ops(self, point: Point) -> list[Op]:
        """What runs at a point; ConfigError where it does not run."""
        if point not in self.runs:
            try:
                self.runs[point] = self._run(point)
            except Exception as error:
                raise self._refusal(error) from error
        return self.runs[point]

    def _run(self, point: Point) -> list[Op]:
        contexts = Contexts()
        assert self.inputs is not None
        with ExitStack() as stack:
            if hasattr(self.module, "config"):
                stack.enter_context(contexts.on())
            stack.enter_context(self.mode)
            recorder = contexts.recorder = Recorder(self.module, self.weights)
            values = self.inputs(point)
            with recorder.on():
                out = huggingface.output(self.module(**values))
                if out.requires_grad:
                    out.sum().backward()
        for parameter in self.parameters.values():
            parameter.grad = None
        return recorder.ops

    # ---- solving ---------------------------------------------------------------------------------

    def _points(self) -> list[Point]:
        """Small ones, and two that are longer than a chunk of any known kernel: small ones alone prove nothing there."""
        near = [self._point(), self._point(batch=3), self._point(length=14)]
        if self.encoder:
            near += [self._point(encoder=8), self._point(length=14, encoder=8)]
        return near

    def _far(self) -> list[Point]:
        far = [self._point(3, 300, 2 * self.encoder), self._point(2, 601, 3 * self.encoder)]
        try:
            for point in far:
                self.ops(point)
        except ConfigError:  # positions that end before
            return [self._point(3, 40, 2 * self.encoder), self._point(2, 23, 3 * self.encoder)]
        return far

    def _solve(self) -> tuple[list[Solved], list[str]]:
        points = [*self._points(), *self._far()]
        solved, open_groups = self._fit(points, 1, None)
        for chunk in self._chunks() if open_groups else ():
            lengths = (chunk, chunk + 7, 2 * chunk + 5, 3 * chunk, 5 * chunk - 3)
            try:
                more = [*points, *(self._point(2, length) for length in lengths)]
                found, open_groups = self._fit(more, chunk, open_groups)
            except ConfigError:
                continue
            solved += found
            if not open_groups:
                break
        return merged(solved), _sentences(open_groups)

    def _chunks(self) -> list[int]:
        """What the config calls a chunk, then those of known kernels."""
        config = getattr(self.module, "config", None)
        named = [value for one in (config, getattr(config, "text_config", None)) for value in _chunk_sizes(one)]
        return list(dict.fromkeys((*named, *_CHUNKS)))

    def _fit(self, points: Sequence[Point], chunk: int, only: Sequence[Key] | None) -> tuple[list[Solved], list[Key]]:
        """What is a function of the lengths at all these points, and the groups that are none."""
        runs = [_grouped(self.ops(point)) for point in points]
        keys = list(dict.fromkeys(key for run in runs for key in run)) if only is None else only
        solved, left = [], []
        for key in keys:
            found = _solved([run.get(key, []) for run in runs], points, chunk, bool(self.encoder))
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
        if ("chunk" in name or "block" in name) and isinstance(value, int) and 8 <= value <= 1024:
            yield value


def _solved(runs: list[list[Op]], points: Sequence[Point], chunk: int, encoder: bool) -> list[Solved] | None:
    """One group at all points: operation by operation where their number is the same, else by its sum."""
    if len({len(run) for run in runs}) == 1:
        found = [_one(ops, points, chunk, encoder) for ops in zip(*runs, strict=True)]
        if all(found):
            return [one for one in found if one is not None]
    basis = _SQUARE_ENCODER if encoder else _SQUARE_CHUNKS if chunk > 1 else _SQUARE
    work = fit([sum(prod(op.dims) for op in run) for run in runs], points, basis, chunk)
    if work is None or not priced(work):
        return None
    first = next(run[0] for run in runs if run)
    return [Solved(replace(first, context=None), work, 1, 1, first.passes)]


def _one(ops: Sequence[Op], points: Sequence[Point], chunk: int, encoder: bool) -> Solved | None:
    """One operation: each of its dimensions, and so their product."""
    basis = _LINEAR_ENCODER if encoder else _LINEAR_CHUNKS if chunk > 1 else _LINEAR
    if len({len(op.dims) for op in ops}) > 1:
        return None
    dims = [fit(values, points, basis, chunk) for values in zip(*(op.dims for op in ops), strict=True)]
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
    """Two factors that do not depend on the batch: of a weight its sides, of a core the head's width and the heads."""
    sides = [dim.constant for dim in dims[:2] if dim.constant]
    if op.weight:
        sides += [dim.constant for dim in dims[2:] if dim.constant]
        k, n, *_ = (*sides, 1, 1)
        return k, n
    factors = [dim.factor for dim in dims]
    width = sides[0] if sides else 1
    return width, max(1, prod(factors) // width)


def merged(solved: Sequence[Solved]) -> list[Solved]:
    """Forward and backward operations of one module with the same work as one, with all its passes."""
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


def _sentences(keys: Sequence[Key]) -> list[str]:
    paths = dict.fromkeys(path or "the model itself" for path, *_ in keys)
    return [f"{path}: what it runs is no function of the lengths that was found, so it is left out" for path in paths]
