"""One asynchronous SUM of one small int64 vector over all ranks.

A step of a large model is beyond int64 (405B parameters at 128k tokens: 6.8e19 FLOPs), so integers travel as two limbs,
``value = high * 2^40 + low``.  Limbs add like the numbers themselves: 2^22 ranks can be summed before a low limb could
overflow, and values up to 2^80 per rank are possible.  Larger ones are an OverflowError before anything is sent.

Nothing here waits unless asked to: on a CPU the gloo thread sums in the background; on CUDA the copy to the device, the
NCCL sum and the copy back to pinned memory run on a side stream, and an event tells when they are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.distributed as dist

CPU = torch.device("cpu")
LIMB_BITS = 40
LIMB_MASK = (1 << LIMB_BITS) - 1
_HIGHEST = 1 << LIMB_BITS


def split(values: Sequence[int]) -> list[list[int]]:
    """Low and high limbs of non-negative integers below 2^80: a list [2][n].

    Raises:
        OverflowError: a value is negative or too large.
    """
    for value in values:
        if not 0 <= value >> LIMB_BITS < _HIGHEST:
            raise OverflowError(f"{value} is outside 0 .. 2^{2 * LIMB_BITS}, the range of a statistic on one rank")
    return [[value & LIMB_MASK for value in values], [value >> LIMB_BITS for value in values]]


def join(limbs: Sequence[Sequence[int]]) -> list[int]:
    """The integers of two rows of (summed) limbs."""
    return [(high << LIMB_BITS) + low for low, high in zip(*limbs, strict=True)]


class PendingSum:
    """A sum on its way; ``ready`` asks, ``wait`` waits. Without torch.distributed it is this rank's own numbers.

    Args:
        limbs: this rank's integers, :func:`split`; as many on every rank.
        device_limbs: limbs [2, n] that are already on the device and are added there; None if there are none.
        device: where the collective runs, see :func:`collective_device`.
    """

    def __init__(
        self,
        limbs: Sequence[Sequence[int]],
        device_limbs: Optional[torch.Tensor] = None,
        *,
        device: torch.device = CPU,
    ) -> None:
        self._host = torch.tensor(limbs, dtype=torch.int64)
        self._work: Any = None
        self._event: Any = None
        if device.type == "cuda":
            self._start_on_cuda(device, device_limbs)
            return
        if device_limbs is not None:
            self._host += device_limbs.cpu()
        if _distributed():
            self._work = dist.all_reduce(self._host, op=dist.ReduceOp.SUM, async_op=True)

    def _start_on_cuda(self, device: torch.device, device_limbs: Optional[torch.Tensor]) -> None:
        self._host = self._host.pin_memory()
        current, side = torch.cuda.current_stream(device), _side_stream(device)
        if device_limbs is not None:
            side.wait_stream(current)  # the device computes them in the order of the current stream
        with torch.cuda.stream(side):
            self._device = self._host.to(device, non_blocking=True)
            if device_limbs is not None:
                self._device += device_limbs
                device_limbs.record_stream(side)
            if _distributed():
                work = dist.all_reduce(self._device, op=dist.ReduceOp.SUM, async_op=True)
                work.wait()  # makes the side stream wait for NCCL, not the host
            self._host.copy_(self._device, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(side)

    def ready(self) -> bool:
        """True once :meth:`wait` returns at once. Never blocks."""
        if self._event is not None:
            return self._event.query()
        return self._work is None or self._work.is_completed()

    def wait(self) -> list[int]:
        """The sums over all ranks."""
        if self._event is not None:
            self._event.synchronize()
        elif self._work is not None:
            self._work.wait()
        return join(self._host.tolist())


def collective_device() -> torch.device:
    """Where an integer tensor can be summed over all ranks: this rank's GPU under NCCL, the CPU otherwise."""
    if torch.cuda.is_available() and (not _distributed() or "nccl" in dist.get_backend()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


_side_streams: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _side_streams:
        _side_streams[device] = torch.cuda.Stream(device)
    return _side_streams[device]
