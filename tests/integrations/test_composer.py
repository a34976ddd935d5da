"""The real Composer Trainer around a small Llama: loggers and checkpoints hold what was trained on."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

pytestmark = [pytest.mark.all, pytest.mark.usefixtures("no_measurement")]

if importlib.util.find_spec("composer") is None:
    pytest.skip("pip install mosaicml", allow_module_level=True)
pytest.importorskip("transformers")


class _Empty(types.ModuleType):
    """A module in which every name is there: Composer imports torchvision and needs none of it here."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


if importlib.util.find_spec("torchvision") is None:
    sys.meta_path.append(_Finder())

import composer  # noqa: E402
import documented  # noqa: E402
import tiny_llama  # noqa: E402
import torch  # noqa: E402
from composer.loggers import InMemoryLogger  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from bridge.config import from_huggingface  # noqa: E402
from bridge.flops import compile_plan  # noqa: E402

ROWS = 4


class Model(composer.models.ComposerModel):
    """Writes down what it is trained on, micro-batch by micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_llama.model()
        self.seen: list[int] = []

    def forward(self, batch: Any) -> Any:
        if torch.is_grad_enabled():
            self.seen += tiny_llama.lengths(batch)
        return self.model(**batch)

    def loss(self, outputs: Any, batch: Any) -> torch.Tensor:
        return outputs.loss

    def eval_forward(self, batch: Any, outputs: Any = None) -> Any:
        return self.model(**batch)

    def get_metrics(self, is_train: bool = False) -> dict[str, Any]:
        return {}


def loader(count: int) -> DataLoader:
    return DataLoader(tiny_llama.texts(count), batch_size=ROWS, collate_fn=tiny_llama.collate)


def flops(lengths: list[int]) -> int:
    plan = compile_plan(from_huggingface(tiny_llama.model().config), "exact")
    return sum(plan.flops([length]) for length in lengths)


def test_rows_and_totals(tmp_path: Path) -> None:
    def fit(batches: int, load: Any = None) -> tuple[Any, Model, InMemoryLogger]:
        logger, model = InMemoryLogger(), Model()
        options = {
            "max_duration": f"{batches}ba",
            "device": "cpu",
            "loggers": [logger],
            "device_train_microbatch_size": 2,
            "optimizers": torch.optim.SGD(model.parameters(), lr=0.1),
            "eval_dataloader": loader(ROWS),
            "eval_interval": "2ba",
            "save_folder": str(tmp_path),
            "save_interval": "3ba",
            "save_overwrite": True,
            "load_path": load,
            "progress_bar": False,
            "log_to_console": False,
        }
        config = from_huggingface(model.model.config)
        names = {"Trainer": composer.Trainer, "model": model, "loader": loader(40), "config": config, "options": options}
        return documented.run("Composer", names)["throughput"].throughput, model, logger

    first, model, logger = fit(3)
    assert len(model.seen) == 3 * ROWS
    assert (first.latest["step"], first.latest["throughput/total_flops"]) == (3, flops(model.seen))
    (row,) = logger.data["throughput/total_flops"]
    assert row[1] == flops(model.seen)
    second, again, _ = fit(5, str(tmp_path / "ep0-ba3-rank0.pt"))
    assert (second.latest["step"], second.latest["throughput/total_flops"]) == (5, flops(model.seen + again.seen))
