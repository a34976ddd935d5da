"""Adapters of every kind of peft's: traced plans against FlopCounterMode, at a length and a batch that made no plan."""

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")

import peft
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from bridge.flops.conventions import CONVENTIONS
from bridge.tracing import trace
from tests.tracing.models import READ

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def lora(**options):
    return peft.LoraConfig(**{**LORA, **options})


KINDS = {
    "dora": lambda: lora(use_dora=True),
    "rslora": lambda: lora(use_rslora=True),
    "rank_pattern": lambda: lora(rank_pattern={"v_proj": 7}),
    "modules_to_save": lambda: lora(modules_to_save=["lm_head", "embed_tokens"]),
    "all-linear": lambda: lora(target_modules="all-linear"),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "oft": lambda: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4, r=0),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj"]),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=["q_proj"]),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "p-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=24),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}


def built(family):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**READ[family])
    config._experts_implementation = "batched_mm"
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def executed(model, batch, length):
    model.train()
    totals = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            ids = torch.ones(batch, length, dtype=torch.long)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            if backward:
                logits.sum().backward()
        totals.append(counter.get_total_flops())
    return totals


def check(model):
    plan, wanted = compile_plan(trace(model), "executed"), executed(model, 3, 21)
    assert [plan.flops([21] * 3, passes=passes) for passes in ("forward", "training")] == wanted
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    parameters = plan.parameters()
    assert (parameters["total"], parameters["trainable"]) == (sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains))


@pytest.mark.all(but=["dora", "vera"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_model(kind):
    check(peft.get_peft_model(built("llama"), KINDS[kind]()))


@pytest.mark.all
@pytest.mark.parametrize("kind", ["all-linear", "dora"])
def test_a_model_of_experts(kind):
    check(peft.get_peft_model(built("qwen3_moe"), KINDS[kind]()))


def test_gradients_of_the_inputs():
    """As checkpointing asks for them: the first layers run a gradient more."""
    model, plain = (peft.get_peft_model(built("llama"), lora()) for _ in range(2))
    model.enable_input_require_grads()
    check(model)
    one, other = (compile_plan(trace(each), "executed").flops([21]) for each in (model, plain))
    # In layer 0 the three projections and their adapters hand a gradient on, and the keys, which do not train, have one.
    assert one - other == 2 * 21 * 64 * (64 + 2 * 32 + 2 * 4 + 21)


@pytest.mark.all
@pytest.mark.parametrize("family", READ)
def test_traced_and_compiled_plans_of_adapters_and_frozen_parts_are_equal(family):
    """What a reader describes of a live model, by component under all conventions."""
    model = peft.get_peft_model(built(family), lora(target_modules="all-linear" if family == "llama" else ["q_proj", "o_proj"]))
    read, traced = from_huggingface(model), trace(model)
    if read.source != "read":
        pytest.skip("no reader describes these adapters")
    for convention in CONVENTIONS:
        one, other = compile_plan(traced, convention), compile_plan(read, convention)
        for passes in ("forward", "training"):
            assert one.flops([777, 33, 5], passes=passes) == other.flops([777, 33, 5], passes=passes), convention


@pytest.mark.all
def test_four_bit_linears():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model, plain = built("llama"), built("llama")
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            old = getattr(layer.self_attn, name)
            new = bitsandbytes.nn.Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=torch.float32)
            new.weight = bitsandbytes.nn.Params4bit(old.weight.data, requires_grad=False).to("cpu")
            setattr(layer.self_attn, name, new)
    adapted, wanted = (peft.get_peft_model(each, lora()) for each in (model, plain))
    plan = compile_plan(trace(adapted), "executed")
    assert [plan.flops([21] * 3, passes=passes) for passes in ("forward", "training")] == executed(wanted, 3, 21)
    assert plan.parameters()["trainable"] == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
