"""verl: a counter with the interface of its ``FlopsCounter``, which its trainers call for FLOP/s and peak.

::

    from bridge.integrations.verl_flops import FlopsCounter

    self.flops_counter = FlopsCounter(model.config)                 # instead of verl.utils.flops_counter.FlopsCounter
    achieved, peak = self.flops_counter.estimate_flops(batch_seqlens, delta_time)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from bridge.hardware import peak_flops

_TERA = 1e12


class FlopsCounter:
    """Counts each sequence by its own length, windows, experts and adapters included.

    Args:
        config: configuration of a transformers model, or anything else that can be priced.
        convention: how FLOPs are counted.
        peak: dense peak of one device in FLOP/s; None: that of ``device_name`` in the table of devices.
        device_name: name of the device; None: the GPU of this process.
        number_format: number format of the peak.
    """

    def __init__(
        self,
        config: Any,
        convention: str = "exact",
        *,
        peak: float | None = None,
        device_name: str | None = None,
        number_format: str = "bf16",
    ) -> None:
        described = from_huggingface(config) if hasattr(config, "model_type") or isinstance(config, dict) else config
        self.plan = compile_plan(described, convention)
        self._peak = peak
        self._device_name, self._number_format = device_name, number_format

    def estimate_flops(self, batch_seqlens: Sequence[int], delta_time: float, **_: Any) -> tuple[float, float]:
        """The rate that was reached, and the peak.

        Args:
            batch_seqlens: number of tokens of every trained sequence, over all ranks.
            delta_time: seconds that the training took.

        Returns:
            (TFLOP/s of all ranks together, peak of one device in TFLOP/s). The peak is infinite if the device is unknown, so that
            the utilization becomes 0 rather than an invented number.
        """
        peak = self._peak or self._find_peak()
        achieved = float(self.plan.flops(batch_seqlens)) / delta_time / _TERA
        return achieved, peak / _TERA if peak else float("inf")

    def _find_peak(self) -> float | None:
        name = self._device_name or _gpu()
        self._peak = peak_flops(name, self._number_format) if name else None
        return self._peak


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
