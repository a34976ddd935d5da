"""Traced plans against execution, at lengths that were not used to make them, and against the plans of readers."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bridge.config import from_huggingface
from bridge.flops import ConfigError, compile_plan
from bridge.flops.conventions import CONVENTIONS
from bridge.flops.terms import Pass
from bridge.tracing import trace
from bridge.tracing.feeds import Feed
from bridge.tracing.huggingface import what_runs
from bridge.tracing.live import copied
from bridge.tracing.tracing import Tracer
from tests.tracing.models import READ, assert_equal

CASES = json.loads((Path(__file__).parents[1] / "data" / "traced_models.json").read_text())
LENGTHS = {"sequence_lengths": [777, 33, 5]}


def counted(plan, **lengths):
    return [plan.flops(passes="forward", **lengths), plan.flops(**lengths), plan.parameters()["total"]]


def lengths_of(case):
    lengths = {"sequence_lengths": [case["sequence"]] * case["batch"]}
    return {**lengths, "encoder_lengths": [case["encoder"]] * case["batch"]} if case.get("encoder") else lengths


@pytest.mark.all(but=["openai-gpt*", "plbart*"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_families_equal_their_execution(case):
    """The integers were counted by FlopCounterMode while transformers ran the model."""
    traced = trace(case["config"])
    assert all(sentence.endswith("all pairs are counted") for sentence in traced.not_counted)
    wanted = [case["forward"], case["forward_backward"], case["parameters"]]
    assert counted(compile_plan(traced, "executed"), **lengths_of(case)) == wanted


def test_a_family_without_a_reader_is_traced_by_itself():
    small = {"model_type": "openai-gpt", "n_layer": 2, "n_embd": 48, "n_head": 3, "n_positions": 64, "vocab_size": 100}
    found = from_huggingface(small)
    assert (found.source, found.model_type) == ("traced", "openai-gpt")
    # Its attention applies its own mask, which cannot be read.
    assert found.not_counted == ("transformer.h.*.attn: which keys a query sees was not read, so all pairs are counted",)
    wanted = 2 * (30 * (2 * 12 * 48 * 48 + 48 * 100) + 2 * 2 * 48 * 30 * 30)
    assert compile_plan(found, "exact").flops([30], passes="forward") == wanted


def test_a_language_model_from_inside_another_has_no_output_layer():
    """Inside of Qwen2-VL it is read, with the output layer that stands there."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    small = {**READ["llama"], "model_type": "qwen2_vl_text", "rope_parameters": rope}
    outer = {"model_type": "qwen2_vl", "text_config": small, "tie_word_embeddings": False}
    alone, inside = from_huggingface(small), from_huggingface(outer)
    assert (alone.source, inside.source) == ("traced", "read")
    inside.model.vision_config = None
    lines = [compile_plan(found, "exact").breakdown([50, 7]) for found in (alone, inside)]
    assert lines[1].pop("output_layer") == 6 * 57 * 64 * 128
    assert lines[0] == {name: value for name, value in lines[1].items() if value}


@pytest.mark.all(but=["gemma3_text", "deepseek_v3"])
@pytest.mark.parametrize("family", READ)
def test_traced_and_read_plans_are_equal(family):
    traced, read = trace(READ[family]), from_huggingface(READ[family])
    assert (traced.not_counted, read.source) == ((), "read")
    for convention in CONVENTIONS:
        one, other = compile_plan(traced, convention), compile_plan(read, convention)
        assert_equal(one, other, convention, LENGTHS)
        assert one.parameters() == other.parameters()


def live(family, **options):
    import transformers

    config = transformers.AutoConfig.for_model(**READ[family])
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", **options)


def executed(model, batch, length):
    """[forward, forward and backward] of text on a real model."""
    totals = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            logits = model(input_ids=torch.zeros(batch, length, dtype=torch.long)).logits
            if backward:
                logits.sum().backward()
        totals.append(counter.get_total_flops())
    return totals


def test_adapters_and_frozen_parts_run_the_passes_that_autograd_runs():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(live("llama"), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    model.base_model.model.model.layers[0].mlp.down_proj.weight.requires_grad_(True)
    model.base_model.model.lm_head.weight.requires_grad_(True)
    before = [(name, parameter.requires_grad, parameter.sum().item()) for name, parameter in model.named_parameters()]
    model.eval()
    plan = compile_plan(trace(model), "executed")
    assert [(name, parameter.requires_grad, parameter.sum().item()) for name, parameter in model.named_parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert counted(plan, sequence_lengths=[21, 21])[:2] == executed(model, 2, 21)
    sizes = [parameter.numel() * parameter.requires_grad for parameter in model.parameters()]
    assert plan.parameters()["trainable"] == sum(sizes)
    assert plan.breakdown([10], passes="forward")["adapters"] == 2 * 10 * 2 * (64 * 4 + 4 * 64 + 64 * 4 + 4 * 32)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_recomputation(reentrant):
    model = live("llama")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    plan = compile_plan(trace(model), "executed")
    plain = compile_plan(from_huggingface(READ["llama"]), "executed")
    assert plan.flops([21, 21]) == plain.flops([21, 21])
    model.train()
    assert plan.flops([21, 21], passes="hardware") == executed(model, 2, 21)[1]


@pytest.mark.all(but=["flex*"])
@pytest.mark.parametrize("kernel", ["flex_attention", "flash_attention_2"])
def test_attention_kernels_that_need_a_gpu_are_traced_without_one(kernel):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(live("gemma3_text"), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    wanted = executed(model, 2, 31)
    model.config._attn_implementation = kernel
    traced = trace(model)
    assert traced.not_counted == ()
    assert model.config._attn_implementation == kernel
    assert counted(compile_plan(traced, "executed"), sequence_lengths=[31, 31])[:2] == wanted
    read, exact = compile_plan(from_huggingface(READ["gemma3_text"]), "exact"), compile_plan(traced, "exact")
    lines = [plan.breakdown([31], passes="forward")["core_attention"] for plan in (exact, read)]
    assert lines[0] == lines[1], "windows are read from the masks"


class Own(nn.Module):
    """A language model that no library has: a convolution in front, fused causal attention, a tied head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.front = nn.Conv1d(24, 24, 3, padding=1)
        self.qkv, self.proj = nn.Linear(24, 72, bias=False), nn.Linear(24, 24)
        self.head = nn.Linear(24, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.front(self.embed(ids).mT).mT
        q, k, v = (part.unflatten(-1, (3, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(self.proj(y.transpose(1, 2).flatten(2)))


def test_a_module_of_ones_own():
    model = Own().eval()
    traced = trace(model, lambda point: {"ids": torch.zeros(point.batch, point.length, dtype=torch.long)})
    assert not model.training
    plan, s = compile_plan(traced, "executed"), 37
    weights = 3 * 24 * 24 + 24 * 72 + 24 * 24 + 24 * 50
    assert plan.flops([s, s], passes="forward") == 2 * 2 * (s * weights + s * s * 2 * 24)
    exact = compile_plan(traced, "exact")
    assert exact.flops([s, s], passes="forward") == 2 * 2 * (s * weights + s * (s + 1) // 2 * 2 * 24)
    assert plan.parameters() == dict.fromkeys(("total", "active", "trainable"), sum(p.numel() for p in model.parameters()))
    assert all(term.passes == Pass.TRAINING for term in traced.traced if term.kind.value == "linear")


def test_images_of_any_size_beside_text():
    """Patches of each image attend to each other: their number and its square."""

    class Seeing(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.embed, self.head = nn.Linear(12, 8), nn.Embedding(50, 8), nn.Linear(8, 50)

        def forward(self, ids, pixels):
            x = self.patch(pixels)
            return self.head(self.embed(ids)).sum() + (x @ x.mT @ x).sum()

    def inputs(point):
        pixels = torch.ones(point.batch * point.images, point.patches, 12)
        return {"ids": torch.zeros(point.batch, point.length, dtype=torch.long), "pixels": pixels}

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    found = Tracer(copied(Seeing(), mode), mode, [Feed(inputs, patches=(16, 15, 64, 35))]).model()
    plan = compile_plan(found, "executed")
    images = sum(p * 12 * 8 + 2 * p * p * 8 for p in (9, 100))
    assert plan.flops([7, 5], [9, 100], passes="forward") == 2 * (12 * 8 * 50 + images)


@pytest.mark.parametrize("chunk", [64, 128])
def test_chunks_of_which_no_configuration_says_the_size(chunk):
    class Chunked(Own):
        def forward(self, ids):
            return self.head(self.embed(nn.functional.pad(ids, (0, -ids.shape[1] % chunk))))

    traced = trace(Chunked(), lambda point: {"ids": torch.zeros(point.batch, point.length, dtype=torch.long)})
    assert traced.not_counted == ()
    padded = chunk * (1 + 3)
    assert compile_plan(traced, "exact").flops([7, 2 * chunk + 1], passes="forward") == 2 * padded * 24 * 50


def test_work_that_is_no_function_of_the_lengths_is_named():
    class Odd(Own):
        def forward(self, ids):
            kept = [position for position in range(ids.shape[1]) if bin(position).count("1") % 2]
            return self.head(self.embed(ids[:, kept]))

    traced = trace(Odd(), lambda point: {"ids": torch.zeros(point.batch, point.length, dtype=torch.long)})
    assert traced.not_counted == ("head: what it runs is no function of the lengths that was found, so it is left out",)
    assert compile_plan(traced, "exact").flops([7]) == 0


def test_what_cannot_be_traced_is_one_error():
    with pytest.raises(ConfigError, match="Own cannot be traced: TypeError"):
        trace(Own(), lambda point: {"idx": torch.zeros(point.batch, point.length, dtype=torch.long)})
    with pytest.raises(ConfigError, match="Own cannot be traced: RuntimeError: shape"):
        trace(Own(), lambda point: {"ids": torch.zeros(point.length, dtype=torch.long).view(2 * point.batch - 1, -1)})
    with pytest.raises(ConfigError, match="'lama' is not known; did you mean 'llama'.*not known to transformers"):
        from_huggingface({"model_type": "lama", "hidden_size": 8})
    with pytest.raises(ConfigError, match="no fields of a model, so there is nothing to trace"):
        from_huggingface({"model_type": "gpt_neox_japanese"})


def test_of_a_model_without_a_forward_the_language_model_in_it_runs():
    class Omni(nn.Module):
        def __init__(self):
            super().__init__()
            self.thinker, self.talker = live("llama"), nn.Linear(3, 3)

    whole = Omni()
    assert what_runs(whole) == (whole.thinker, ("talker: thinker alone was traced, which runs by itself",))
    assert what_runs(whole.thinker) == (whole.thinker, ())
    assert what_runs(nn.ModuleList([nn.Linear(3, 3)]))[1] == ()


def test_a_head_that_the_configuration_does_not_tell_is_found_on_the_model():
    import transformers

    config = transformers.AutoConfig.for_model(**READ["llama"], num_labels=3)
    model = transformers.LlamaForSequenceClassification(config)
    found = from_huggingface(model)
    assert found.source == "traced"
    plan, read = compile_plan(found, "exact"), compile_plan(from_huggingface(READ["llama"]), "exact")
    assert read.flops([50]) - plan.flops([50]) == 6 * 50 * 64 * (128 - 3)
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())
