"""The totals of a job since its first step: kept in checkpoints, continued after a restart.

The statistics are kept, not the FLOPs: an integer FLOP count follows from them at any time, in any convention, for any log
interval and number of ranks.  Only if a restart changes the model itself are the FLOPs so far carried as a separate number,
because the new plan cannot price the old work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.flops.plan import Plan
from bridge.metrics.vector import VectorLayout


def whole(flops: Any) -> int:
    """FLOPs as an integer; a plan's rare fractions of a FLOP are rounded."""
    return flops if type(flops) is int else round(flops)


class Totals:
    """Cumulative statistics by name.

    Args:
        plan: prices them; None if the model cannot be priced.
        layout: layout of the vectors that will be added.
    """

    def __init__(self, plan: Plan | None, layout: VectorLayout) -> None:
        self._plan = plan
        self._layout = layout
        self._values = layout.zeros()
        self._carried_flops: int | None = 0
        """None: earlier work was counted in another convention, so there is no total in this one."""
        self._carried_tokens = 0
        self._carried_unread = False
        self.complete = True
        """False once a rank could not count; from then on there is no total, rather than a wrong one."""

    def add(self, vector: Sequence[int]) -> None:
        """Add a vector that was summed over all ranks."""
        self._values = [old + new for old, new in zip(self._values, vector, strict=True)]

    def __getitem__(self, name: str) -> int:
        """One statistic or counter since the first step, as far as this model's plan knows it."""
        return self._values[self._layout.index[name]]

    @property
    def lower_bound(self) -> bool:
        """Whether some micro-batches since the first step could not be read, so that more was done than is counted."""
        return self._carried_unread or self["unread_micro_batches"] > 0

    @property
    def _unknown(self) -> bool:
        """Whether no micro-batch could be read: then there is no total, rather than 0."""
        return self.lower_bound and not self["micro_batches"] and not self._carried_tokens

    @property
    def flops(self) -> int | None:
        """Model FLOPs since the first step; None if some work cannot be priced, or no micro-batch could be read."""
        if self._plan is None or self._unknown or self._carried_flops is None:
            return None
        return self._carried_flops + whole(self._plan.evaluate(self._values[: len(self._plan.statistics)]))

    @property
    def tokens(self) -> int | None:
        """Real tokens since the first step; None if no micro-batch could be read."""
        return None if self._unknown else self._carried_tokens + self["tokens"]

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: plain integers and strings."""
        values = zip(self._layout.names, self._values, strict=True)
        return {
            "convention": None if self._plan is None else self._plan.convention,
            "statistics": {name: value for name, value in values if name in self._layout.kept},
            "carried_flops": self._carried_flops,
            "carried_tokens": self._carried_tokens,
            "total_flops": self.flops,
            "total_tokens": self.tokens,
            "complete": self.complete and not self.lower_bound,
            "failed": not self.complete,
        }

    @staticmethod
    def unknown() -> dict[str, Any]:
        """The state if it is unknown what was done."""
        return {
            "convention": None,
            "statistics": {},
            "carried_flops": 0,
            "carried_tokens": 0,
            "total_flops": None,
            "total_tokens": None,
            "complete": False,
            "failed": True,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> str | None:
        """Continue from a checkpoint, whatever layout, log interval, convention or model it was written with.

        Returns:
            A sentence for the user if the totals do not simply continue.
        """
        self.complete = not state.get("failed", not state["complete"])
        carried = state["carried_flops"]
        self._carried_flops, self._carried_tokens = None if carried is None else int(carried), int(state["carried_tokens"])
        saved = {name: int(value) for name, value in state["statistics"].items()}
        self._values = [saved.get(name, 0) for name in self._layout.names]
        self._carried_unread = self.complete and not state["complete"]
        if not self.complete:
            return "the checkpoint's FLOP total is incomplete, since a rank could not count; no totals are reported"
        if self._plan is None or state["total_flops"] is None:
            return None
        same_convention = state["convention"] == self._plan.convention
        priceable = all(statistic.name in saved for statistic in self._plan.statistics)
        if same_convention and priceable and self.flops == state["total_flops"]:
            return None
        was, now = state["convention"], self._plan.convention
        if not same_convention and priceable and not self._carried_flops:
            return f"total_flops was counted in the {was} convention and is now scored in the {now} one"
        # Another model gives the statistics another meaning: keep the FLOPs so far.  Another convention that needs other
        # statistics cannot score the old work, and numbers of two conventions are never mixed.
        self._carried_flops = int(state["total_flops"]) if same_convention else None
        self._carried_tokens = int(state["total_tokens"] or 0)
        self._carried_unread = self.lower_bound
        self._values = self._layout.zeros()
        if same_convention:
            return "the model is not the checkpoint's: total_flops keeps what was counted, new steps are priced anew"
        return (
            f"total_flops is not reported: the checkpoint counted in the {was} convention and has not what the {now} one needs; "
            f"convention={was} continues it"
        )
