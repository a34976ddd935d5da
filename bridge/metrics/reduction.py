"""One asynchronous SUM of a small int64 vector over all ranks; in large jobs also a MAX of a few more int64.

The FLOPs of one step of a large model exceed int64 (405B parameters at 128k tokens: 6.8e19 FLOPs), so integers are sent as two
limbs, ``value = high * 2^40 + low``.  Limbs add like the numbers themselves: 2^22 ranks can be summed before a low limb
overflows, and values up to 2^80 per rank are possible.  Larger values raise an OverflowError before anything is sent.

Only ``wait`` waits: on a CPU the gloo thread sums in the background; on CUDA the copy to the device, the NCCL sum and the copy
back to pinned memory run on a side stream, and an event records when they are done.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from bridge.metrics.place import is_distributed

CPU = torch.device("cpu")
LIMB_BITS = 40
LIMB_MASK = (1 << LIMB_BITS) - 1
_HIGHEST = 1 << LIMB_BITS


def to_limbs(values: Sequence[int]) -> torch.Tensor:
    """Low and high limbs of integers from -2^80 to 2^80: int64 [2, n]. Statistics are never negative, floats may be.

    Raises:
        OverflowError: a value is too large.
    """
    high = [value >> LIMB_BITS for value in values]
    for most in (min(high), max(high)) if high else ():
        if not -_HIGHEST <= most < _HIGHEST:
            value = values[high.index(most)]
            raise OverflowError(f"{value} is outside -2^{2 * LIMB_BITS} .. 2^{2 * LIMB_BITS}, the range of a sum on one rank")
    return integers([*(value & LIMB_MASK for value in values), *high]).view(2, -1)


def from_limbs(limbs: torch.Tensor) -> list[int]:
    """The integers of (summed) limbs [2, n]."""
    return [(high << LIMB_BITS) + low for low, high in zip(*limbs.tolist(), strict=True)]


def integers(values: Sequence[int]) -> torch.Tensor:
    """An int64 tensor [n]; torch reads an array in a fraction of the time that a list takes."""
    return torch.frombuffer(array("q", values), dtype=torch.int64) if values else torch.empty(0, dtype=torch.int64)


class PendingSum:
    """A sum that is under way. Without torch.distributed it is this rank's own numbers.

    Args:
        limbs: this rank's integers from :func:`to_limbs`, the same number on every rank. The sum overwrites them.
        device_limbs: limbs [2, n] that are already on the device and are added there; None if there are none.
        maxima: int64 [n], reduced to their maxima over all ranks; the same number on every rank. None or empty: no second
            collective.
        device: where the collectives run, see :func:`collective_device`.
        group: the ranks that are summed over; None: all ranks of the job.
    """

    def __init__(
        self,
        limbs: torch.Tensor,
        device_limbs: torch.Tensor | None = None,
        *,
        maxima: torch.Tensor | None = None,
        device: torch.device = CPU,
        group: Any = None,
    ) -> None:
        self._host, self._maxima = limbs, integers([]) if maxima is None else maxima
        self._works: list[Any] = []
        self._event: Any = None
        if device.type == "cuda":
            self._start_on_cuda(device, device_limbs, group)
            return
        if device_limbs is not None:
            self._host += device_limbs.cpu()
        if is_distributed():
            self._works = _start(self._host, self._maxima, group)

    def _start_on_cuda(self, device: torch.device, device_limbs: torch.Tensor | None, group: Any) -> None:
        self._host = self._host.pin_memory()
        self._maxima = self._maxima.pin_memory() if self._maxima.numel() else self._maxima
        current, side = torch.cuda.current_stream(device), _side_stream(device)
        if device_limbs is not None:
            side.wait_stream(current)  # the current stream computes them
        with torch.cuda.stream(side):
            self._device = self._host.to(device, non_blocking=True)
            self._device_maxima = self._maxima.to(device, non_blocking=True)
            if device_limbs is not None:
                self._device += device_limbs
                device_limbs.record_stream(side)
            if is_distributed():
                for work in _start(self._device, self._device_maxima, group):
                    work.wait()  # makes the side stream wait for NCCL, not the host
            self._host.copy_(self._device, non_blocking=True)
            self._maxima.copy_(self._device_maxima, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(side)

    def ready(self) -> bool:
        """Whether :meth:`wait` would return at once. Never blocks."""
        if self._event is not None:
            return self._event.query()
        return all(work.is_completed() for work in self._works)

    def wait(self) -> list[int]:
        """The sums over all ranks."""
        if self._event is not None:
            self._event.synchronize()
        for work in self._works:
            work.wait()
        return from_limbs(self._host)

    def maxima(self) -> list[int]:
        """The maxima over all ranks; call it after :meth:`wait`."""
        return self._maxima.tolist()


def _start(sums: torch.Tensor, maxima: torch.Tensor, group: Any) -> list[Any]:
    """Start the collectives. Calling the group itself takes a third of the time of ``dist.all_reduce``."""
    group = group or dist.group.WORLD
    works = [group.allreduce([sums], _SUM)]
    if maxima.numel():
        works.append(group.allreduce([maxima], _MAX))
    return works


def _options(operation: Any) -> Any:
    options = dist.AllreduceOptions()
    options.reduceOp = operation
    if hasattr(options, "asyncOp"):  # in older versions of torch, waiting alone decides
        options.asyncOp = True
    return options


def collective_device() -> torch.device:
    """Where an integer tensor can be summed over all ranks: this rank's GPU under NCCL, the CPU otherwise."""
    if torch.cuda.is_available() and (not is_distributed() or "nccl" in dist.get_backend()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


if dist.is_available():
    _SUM, _MAX = _options(dist.ReduceOp.SUM), _options(dist.ReduceOp.MAX)

_side_streams: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _side_streams:
        _side_streams[device] = torch.cuda.Stream(device)
    return _side_streams[device]
