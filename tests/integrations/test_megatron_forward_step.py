"""The wrapped forward step by itself; ``test_two_ranks.py`` has it in real loops."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("megatron.core")

from bridge.flops import ConfigError, compile_plan
from bridge.integrations.megatron_bridge import observed
from bridge.training.callbacks import ThroughputCallback

MODEL = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 8, "seq_length": 8}
BATCH = {"cu_seqlens": [0, 3, 8]}


@pytest.fixture
def throughput_forward_step(monkeypatch):
    """The adapter, with Megatron-LM's ``args`` at hand as ``.args``."""
    training = ModuleType("megatron.training")
    args = SimpleNamespace(**MODEL, log_interval=10, curr_iteration=0)
    training.get_args, training.get_wandb_writer = lambda: args, lambda: None
    monkeypatch.setitem(sys.modules, "megatron.training", training)
    monkeypatch.setattr("bridge.metrics.peak.measure_matmul", lambda dtype: (1e15, "measured: in a test"))
    monkeypatch.setattr("megatron.core.parallel_state.get_pipeline_model_parallel_world_size", lambda: 1)
    monkeypatch.delitem(sys.modules, "bridge.integrations.megatron_lm", raising=False)
    from bridge.integrations.megatron_lm import ThroughputForwardStep

    def make():
        made = ThroughputForwardStep(lambda data_iterator, model: next(data_iterator), ThroughputCallback("exact"))
        made.args = args
        return made

    yield make
    sys.modules.pop("bridge.integrations.megatron_lm")


@pytest.mark.parametrize("forward_step", [lambda batch, model: None, lambda data_iterator: None])
def test_a_forward_step_without_the_two_parameters_is_refused(forward_step):
    with pytest.raises(ConfigError, match="needs parameters data_iterator and model"):
        observed(forward_step, ThroughputCallback())


def test_arguments_are_passed_on_in_any_form():
    def forward_step(state, data_iterator, model, return_schedule_plan=False):
        return state, next(data_iterator), return_schedule_plan

    wrapped = observed(forward_step, ThroughputCallback())
    model = SimpleNamespace()
    assert wrapped("state", iter([BATCH]), model) == ("state", BATCH, False)
    assert wrapped("state", model=model, data_iterator=iter([BATCH]), return_schedule_plan=True) == ("state", BATCH, True)


def test_only_the_first_chunk_of_a_virtual_pipeline_is_observed():
    seen = []
    throughput = ThroughputCallback()
    throughput.observe = lambda iterator: seen.append(iterator) or iterator
    wrapped = observed(lambda data_iterator, model: None, throughput)
    for stage in (0, 1, None):
        wrapped(f"iterator of {stage}", SimpleNamespace(vp_stage=stage))
    assert seen == ["iterator of 0", "iterator of None"]


def test_steps_follow_the_iterations_and_evaluations_do_not_count(throughput_forward_step):
    forward_step = throughput_forward_step()
    training, evaluating = SimpleNamespace(training=True), SimpleNamespace(training=False)
    data = iter([BATCH] * 10)
    with forward_step:
        assert forward_step(data, evaluating) == BATCH  # before the first step
        for iteration in range(3):
            forward_step.args.curr_iteration = iteration
            assert [forward_step(data, training) for _ in range(2)] == [BATCH, BATCH]
            if iteration == 1:
                forward_step(data, evaluating)
    assert forward_step.throughput.latest["step"] == 3
    assert forward_step.throughput.latest["throughput/total_flops"] == 6 * compile_plan(MODEL, "exact").flops([3, 5])


def test_the_last_row_is_waited_for_unless_something_failed(throughput_forward_step):
    """Megatron-LM ends by SystemExit on all ranks together, and by anything else on one of them alone."""
    forward_step = throughput_forward_step()
    forward_step(iter([BATCH]), SimpleNamespace(training=True))
    forward_step.__exit__(RuntimeError, RuntimeError("mine"), None)
    assert forward_step.throughput.latest == {}
    forward_step.__exit__(SystemExit, SystemExit(0), None)
    assert forward_step.throughput.latest["step"] == 1
