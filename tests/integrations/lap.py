"""A training loop that bridge does not know, and whose adapter docs/extending.md shows.

It accumulates gradients, evaluates and saves in between, resumes, and closes its logger at the end; its evaluations announce
their batches as its steps do, and its logger refuses a row after the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bridge.integrations.catalogue import Adapter

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def _block(title: str) -> str:
    return re.search(rf'^```python title="{title}"\n(.*?)^```$', PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]


def adapter() -> Any:
    """The class of the page, as it stands there."""
    names: dict[str, Any] = {}
    exec(compile(_block("lap_callback.py"), f"{PAGE}#lap_callback.py", "exec"), names)
    return names["ThroughputLapCallback"]


def catalogued() -> Adapter:
    """Its row, as it stands there."""
    return eval(_block("bridge/integrations/catalogue.py"), {"Adapter": Adapter})


class Logger:
    """Keeps what it is given while it is open."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.open = True

    def log(self, values: dict[str, Any], step: int) -> None:
        assert self.open, "the logger is closed"
        self.rows.append((step, values))

    def column(self, key: str) -> dict[int, Any]:
        """The values of a key by step."""
        return {step: values[key] for step, values in self.rows if key in values}


class Trainer:
    """Trains a model of transformers; data parallel where there are ranks.

    Args:
        model: what is trained.
        batches: of this rank, ``accumulate`` a step.
        callbacks: get every event.
        steps: after which it is over.
        log_every, evaluate_every, save_every: steps between.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        batches: Sequence[Any],
        callbacks: Sequence[Any],
        steps: int,
        *,
        accumulate: int = 2,
        log_every: int = 2,
        evaluate_every: int = 3,
        save_every: int = 4,
    ) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.model = DistributedDataParallel(model) if dist.is_initialized() else model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)
        self.logger, self.saved = Logger(), {}
        self.log_every = log_every
        self.step = 0
        self._batches, self._callbacks, self._steps, self._accumulate = batches, callbacks, steps, accumulate
        self._evaluate_every, self._save_every = evaluate_every, save_every

    def fit(self, checkpoint: Any = None) -> None:
        """Train, from a checkpoint of ``saved`` where one is given."""
        if checkpoint:
            self._resume(checkpoint)
        self._tell("fit_begin")
        while self.step < self._steps:
            self._train_step()
            if self.step % self._evaluate_every == 0:
                self._evaluate()
            if self.step % self._save_every == 0:
                self._save()
        self._tell("fit_end")
        self.logger.open = False

    def _tell(self, event: str, *arguments: Any) -> list[Any]:
        return [getattr(callback, event)(self, *arguments) for callback in self._callbacks]

    def _train_step(self) -> None:
        self._tell("step_begin")
        first = self.step * self._accumulate
        for batch in self._batches[first : first + self._accumulate]:
            loss = self._loss(batch) / self._accumulate
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.rank == 0 and self.step % self.log_every == 0:
            self.logger.log({"loss": loss.item()}, self.step)
        self._tell("step_end")

    def _loss(self, batch: Any) -> torch.Tensor:
        self._tell("batch", batch)
        return self.model(**batch).loss

    def _evaluate(self) -> None:
        self._tell("evaluation_begin")
        self.model.eval()
        with torch.no_grad():
            self._loss(self._batches[0])
        self.model.train()
        self._tell("evaluation_end")

    def _save(self) -> None:
        states = self._tell("save")
        weights = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        self.saved[self.step] = {
            "step": self.step,
            "model": weights,
            "optimizer": self.optimizer.state_dict(),
            "callbacks": states,
        }

    def _resume(self, checkpoint: Any) -> None:
        self.step = checkpoint["step"]
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        for callback, state in zip(self._callbacks, checkpoint["callbacks"], strict=True):
            callback.load(self, state)
