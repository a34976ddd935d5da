"""The built model is asked what it runs, beside what it has."""

from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

import torch
import transformers

from bridge.config import from_huggingface
from bridge.flops import ConfigError, compile_plan
from bridge.training.callbacks import CallbackContext, ThroughputCallback
from bridge.training.callbacks.throughput import FACTS
from bridge.training.verify import by_trace, traced_plan
from tests.tracing.models import READ

#: The same parameters, and windows of another size.
OTHER = {**READ["gemma3_text"], "sliding_window": 40}


@pytest.fixture(scope="module")
def model():
    config = transformers.AutoConfig.for_model(**READ["gemma3_text"])
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def test_flops_are_compared_by_component(model):
    traced = traced_plan([model], "exact")
    plan = compile_plan(from_huggingface(READ["gemma3_text"]), "exact")
    equal = by_trace(plan, traced, plan.verify(model))
    assert (equal.facts["verified"], equal.differences) == ("trace", ())
    other = compile_plan(from_huggingface(OTHER), "exact")
    assert other.verify(model).equal
    said = by_trace(other, traced, other.verify(model))
    sums = [one.breakdown([777, 64])["core_attention"] for one in (other, traced)]
    sentence = f"core_attention: plan {sums[0]:,} FLOPs of 777 + 64 tokens, trace {sums[1]:,}"
    assert said.facts == {"verified": "no", "verified_details": [sentence]}


def started(model, config, **options):
    callback = ThroughputCallback(convention="exact", peak_flops=1e12, **options)
    state = SimpleNamespace(cfg=from_huggingface(config), train_state=SimpleNamespace(step=0))
    context = CallbackContext(state=state, model=[model])
    callback.on_train_start(context)
    callback.close()
    return callback, context.user_state[FACTS]


@pytest.mark.all(but=["use*"])
@pytest.mark.parametrize(("verify", "told"), [("parameters", "parameters"), ("trace", "no"), ("use", "trace")])
def test_a_run_is_told_what_was_compared(model, verify, told):
    callback, facts = started(model, OTHER, verify=verify)
    assert facts["verified"] == told
    assert bool(callback.verified.differences) == (verify == "trace")
    used = "gemma3_text" if verify == "use" else "other"
    wanted = compile_plan(from_huggingface(READ["gemma3_text"] if used == "gemma3_text" else OTHER), "exact")
    assert callback._judged(compile_plan(from_huggingface(OTHER), "exact"), [model])[0].flops([300]) == wanted.flops([300])


def test_a_model_that_cannot_be_traced_is_compared_by_its_parameters(model):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = model

        def forward(self):
            raise RuntimeError

    _, facts = started(Odd(), READ["gemma3_text"], verify="trace")
    assert facts["verified_details"][-1].startswith("not traced: Odd cannot be traced")


def test_words_and_parts_that_cannot_be(model):
    with pytest.raises(ConfigError, match="verify='model' is not known; choose one of parameters, trace, use"):
        ThroughputCallback(verify="model")
    with pytest.raises(ConfigError, match="a model in 2 parts cannot be traced"):
        traced_plan([model, model], "exact")
