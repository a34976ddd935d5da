"""The wrapped forward step and what is read off the loop's functions; ``test_two_ranks.py`` has both in the real loop."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from bridge.flops import ConfigError, compile_plan
from bridge.integrations.megatron_bridge import observed
from bridge.training.callbacks import CallbackContext, ThroughputCallback

MODEL = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 8, "seq_length": 8}
BATCH = {"cu_seqlens": [0, 3, 8]}


@pytest.mark.parametrize("forward_step", [lambda batch, model: None, lambda data_iterator: None])
def test_a_forward_step_without_the_two_parameters_is_refused(forward_step):
    with pytest.raises(ConfigError, match="needs parameters named data_iterator and model"):
        observed(forward_step, ThroughputCallback())


def test_arguments_are_passed_on_in_any_form():
    def forward_step(state, data_iterator, model, return_schedule_plan=False):
        return state, next(data_iterator), return_schedule_plan

    wrapped = observed(forward_step, ThroughputCallback())
    model = SimpleNamespace()
    assert wrapped("state", iter([BATCH]), model) == ("state", BATCH, False)
    assert wrapped("state", model=model, data_iterator=iter([BATCH]), return_schedule_plan=True) == ("state", BATCH, True)


def test_a_partial_is_a_forward_step_whose_signature_stays_visible():
    """Megatron-Bridge looks for its state among the parameters, by name or annotation."""

    def forward_step(global_state: GlobalState, data_iterator: Any, model: Any, loss: str = "mean") -> Any:  # noqa: F821
        return global_state, next(data_iterator), loss

    seen: list[Any] = []
    throughput = ThroughputCallback()
    throughput.observe = lambda iterator: seen.append(iterator) or iterator
    given = functools.partial(forward_step, loss="sum")
    wrapped = observed(given, throughput)
    assert inspect.signature(wrapped) == inspect.signature(given)
    with_state = functools.partial(wrapped, "state")  # as the loop injects it
    iterator = iter([BATCH])
    assert with_state(iterator, SimpleNamespace()) == ("state", BATCH, "sum")
    assert seen == [iterator]


def test_only_the_first_chunk_of_a_virtual_pipeline_is_observed():
    seen = []
    throughput = ThroughputCallback()
    throughput.observe = lambda iterator: seen.append(iterator) or iterator
    wrapped = observed(lambda data_iterator, model: None, throughput)
    for stage in (0, 1, None):
        wrapped(f"iterator of {stage}", SimpleNamespace(module=SimpleNamespace(vp_stage=stage)))
    assert seen == ["iterator of 0", "iterator of None"]


class Events:
    """The part of Megatron-Bridge's loop that its callbacks are not told of, in its order of calls."""

    def __init__(self, save: str, load: str | None, step: int, exit_interval: int | None) -> None:
        self.calls: list[str] = []
        checkpoint = SimpleNamespace(save=save, load=load)
        cfg = SimpleNamespace(model=SimpleNamespace(**MODEL), checkpoint=checkpoint, logger=SimpleNamespace(log_interval=10))
        self.state = SimpleNamespace(cfg=cfg, train_state=SimpleNamespace(step=step))
        self.model = [SimpleNamespace()]
        self.exit_interval = exit_interval
        self.module = ModuleType("megatron.bridge.training.train")
        for name in ("train", "save_checkpoint_and_time", "checkpoint_and_decide_exit"):
            setattr(self.module, name, getattr(self, name))

    def train(self, forward_step_func: Any, global_state: Any, callback: Any) -> None:
        context = CallbackContext(state=global_state, model=None)  # type: ignore[arg-type]
        callback.on_train_start(context)
        for _ in range(4 - global_state.train_state.step):
            callback.on_train_step_start(context)
            forward_step_func(iter([BATCH]), self.model[0])
            global_state.train_state.step += 1
            callback.on_train_step_end(context)
            if self.module.checkpoint_and_decide_exit(global_state, self.model):
                self.calls.append("wandb.finish")
                raise SystemExit(0)
        callback.on_train_end(context)

    def save_checkpoint_and_time(self, state: Any, model: Any, non_persistent_ckpt: bool = False) -> None:
        self.calls.append(f"save {state.train_state.step}")

    def checkpoint_and_decide_exit(self, state: Any, model: Any) -> bool:
        if state.train_state.step == 2:
            self.module.save_checkpoint_and_time(state, model)
        return state.train_state.step == self.exit_interval


@pytest.mark.usefixtures("no_measurement")
def test_the_row_of_an_early_exit_comes_before_wandb_closes_and_totals_go_on(tmp_path, monkeypatch):
    step = compile_plan(MODEL, "exact").flops([3, 5])

    def job(**options: Any) -> tuple[ThroughputCallback, Events]:
        loop = Events(str(tmp_path), **options)
        monkeypatch.setitem(sys.modules, loop.module.__name__, loop.module)
        throughput = ThroughputCallback("exact", metrics_file=str(tmp_path / "metrics.jsonl"))
        ended = throughput.on_train_end
        throughput.on_train_end = lambda context: (loop.calls.append("end"), ended(context))  # type: ignore[method-assign]
        forward_step = observed(lambda data_iterator, model: next(data_iterator), throughput)
        with contextlib.suppress(SystemExit):
            loop.module.train(forward_step, loop.state, throughput)
        return throughput, loop

    first, loop = job(load=None, step=0, exit_interval=3)
    assert loop.calls == ["save 2", "end", "wandb.finish"]
    assert (first.latest["step"], first.latest["throughput/total_flops"]) == (3, 3 * step)
    assert json.loads((tmp_path / "iter_0000002" / "throughput.json").read_text())["total_flops"] == 2 * step
    second, loop = job(load=str(tmp_path), step=2, exit_interval=None)
    assert (second.latest["step"], second.latest["throughput/total_flops"]) == (4, 4 * step)
    assert "throughput/incomplete" not in second.latest
