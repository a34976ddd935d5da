"""The norms between the two halves of a latent projection, frozen or trained alone: compiled, traced and executed plans agree."""

import pytest

pytest.importorskip("transformers")

from oracle import transformers_models as oracle

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from bridge.tracing import trace

NORMS = {"q_a_layernorm": "q_layernorm", "kv_a_layernorm": "kv_layernorm"}


@pytest.mark.all(but=["q_a_layernorm-frozen alone"])
@pytest.mark.parametrize("alone", [True, False], ids=["trained alone", "frozen alone"])
@pytest.mark.parametrize("theirs", NORMS)
def test_latent_norms(theirs, alone):
    """In the upper layer, so that what leads down to it matters."""
    config = oracle.draw("deepseek_v3", 1)
    config.q_lora_rank = 6
    model, last = oracle.build(config, device="cpu"), config.num_hidden_layers - 1
    name = f"model.layers.{last}.self_attn.{theirs}"
    path = f"decoder.layers.{last}.self_attention.{NORMS[theirs]}"
    for module, parameters in oracle.modules(model).items():
        for parameter in parameters:
            parameter.requires_grad_((module == name) is alone)
    compiled = compile_plan(from_huggingface(config), "executed", trainable=lambda one: (one == path) is alone)
    wanted = oracle.training(model, 2, 9), sum(p.numel() for p in model.parameters() if p.requires_grad)
    for plan in (compiled, compile_plan(trace(model), "executed")):
        assert (plan.flops([9, 9]), plan.parameters()["trainable"]) == wanted
    everything = compile_plan(from_huggingface(config), "executed")
    assert (compiled.flops([9, 9]) < everything.flops([9, 9])) is alone
