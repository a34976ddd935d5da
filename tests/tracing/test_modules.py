"""Modules of several libraries: traced plans against FlopCounterMode, at lengths and batches that were not used to make them."""

import importlib
import logging
from math import prod

import pytest

pytest.importorskip("transformers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from bridge.flops import ConfigError, compile_plan
from bridge.tracing import trace
from bridge.tracing.solving import Point


def convolution_backward(gradient, x, weight, b, st, pa, di, transposed, op, gr, mask, out_shape=None):
    """torch's own formula leaves out that the input's gradient may not be wanted."""
    return conv_flop_count(x, weight, gradient, transposed) * (bool(mask[0]) + bool(mask[1]))


def grouped(a, b, *_, out_shape=None, **__):
    """Experts' products, which torch does not count on a CPU."""
    return 2 * prod(a) * b[-1]


def executed(model, inputs, point, output=lambda out: out):
    totals = []
    for backward in (False, True):
        mapping = {torch.ops.aten.convolution_backward: convolution_backward, torch.ops.aten._grouped_mm: grouped}
        # Fused attention as its two products, which torch counts on any device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            out = output(model(**inputs(point)))
            if backward:
                out.sum().backward()
        totals.append(counter.get_total_flops())
    return totals


def planned(plan, point):
    lengths = [point.length] * point.batch
    return [plan.flops(lengths, passes=passes) for passes in ("forward", "training")]


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.fc, self.proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.c_proj(y)
        return x + self.proj(nn.functional.gelu(self.fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    """Decoder blocks, learned positions, a tied head, logits and loss: as many teach it."""

    def __init__(self, width=24, layers=2, vocabulary=60, positions=1024):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.h = nn.ModuleList(Block(width, 3) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx, targets=None):
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1]]), None
        logits = self.lm_head(x)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def tokens(point):
    ids = torch.zeros(point.batch, point.length, dtype=torch.long)
    return {"idx": ids, "targets": ids}


@pytest.fixture(scope="module")
def nano():
    model = NanoGPT()
    return model, trace(model, tokens)


def test_a_small_gpt_of_ones_own(nano):
    model, traced = nano
    plan, point = compile_plan(traced, "executed"), Point(3, 37)
    assert traced.not_counted == ()
    assert planned(plan, point) == executed(model, tokens, point, lambda out: out[0])
    layer, s = 12 * 24 * 24, 37
    exact = compile_plan(traced, "exact").flops([s], passes="forward")
    assert exact == 2 * (s * (2 * layer + 24 * 60) + 2 * s * (s + 1) // 2 * 2 * 24)
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert list(compile_plan(traced, "exact").breakdown([s])) == ["self_attention", "core_attention", "mlp", "output_layer"]


def test_without_targets_its_head_runs_once_a_sequence():
    """Only the last logits: what is traced is what runs with what is given."""
    plan = compile_plan(trace(NanoGPT()), "exact")
    assert plan.breakdown([37], passes="forward")["output_layer"] == 2 * 24 * 60


@settings(max_examples=30)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.randoms())
def test_traced_plans_are_additive_and_blind_to_order(nano, lengths, order):
    for convention in ("exact", "executed", "megatron"):
        plan = compile_plan(nano[1], convention)
        total, parts = plan.flops(lengths), [plan.flops([length]) for length in lengths]
        shuffled = order.sample(lengths, len(lengths))
        assert total == sum(parts) == plan.flops(shuffled) == sum(plan.breakdown(lengths).values())
        assert plan.flops(lengths, passes="forward") * 3 == total <= plan.flops(lengths, passes="hardware")


def test_what_trains_is_what_ran(nano):
    model, traced = nano
    assert compile_plan(traced, "exact", trainable=lambda path: True).flops([5]) == compile_plan(traced, "exact").flops([5])
    with pytest.raises(ConfigError, match="it trained when the model was traced.*trace it again"):
        compile_plan(traced, "exact", trainable=lambda path: "c_attn" not in path)
    model.h[0].requires_grad_(False)
    model.wte.requires_grad_(False)
    try:
        frozen = trace(model, tokens)
        point = Point(2, 21)
        plan = compile_plan(frozen, "executed")
        assert planned(plan, point) == executed(model, tokens, point, lambda out: out[0])
        assert planned(plan, point)[1] < planned(compile_plan(traced, "executed"), point)[1]
    finally:
        model.requires_grad_(True)


def test_lightnings_module_with_a_convolution_in_front():
    lightning = pytest.importorskip("lightning")

    class Spectra(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.front = nn.Conv1d(10, 24, 3, stride=2, padding=1)
            self.block, self.head = Block(24, 3), nn.Linear(24, 7)

        def forward(self, frames):
            return self.head(self.block(self.front(frames).transpose(1, 2)))

    def frames(point):
        return {"frames": torch.ones(point.batch, 10, 2 * point.length)}  # a length is what the convolution leaves

    model, point = Spectra(), Point(3, 41)
    traced = trace(model, frames)
    assert traced.not_counted == ()
    assert planned(compile_plan(traced, "executed"), point) == executed(model, frames, point)


def test_a_diffusion_transformer():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, out_channels=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=512,
    )  # fmt: skip

    def inputs(point):
        # Latent tokens are the sequence, text is the encoder's.
        return {
            "hidden_states": torch.ones(point.batch, 4, 2, 2 * point.length),
            "encoder_hidden_states": torch.ones(point.batch, point.encoder or 6, 32),
            "pooled_projections": torch.ones(point.batch, 64),
            "timestep": torch.ones(point.batch),
            "return_dict": False,
        }

    traced = trace(model, inputs)
    point = Point(3, 23)
    assert traced.not_counted == ()
    assert planned(compile_plan(traced, "executed"), point) == executed(model, inputs, point, lambda out: out[0])


def test_a_vision_transformer_of_timm():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=5, dynamic_img_size=True)

    def inputs(point):
        return {"x": torch.ones(point.batch, 3, 16, 16 * point.length)}

    traced = trace(model, inputs)
    assert traced.not_counted == ()
    for batch, length in ((3, 11), (1, 30)):
        assert planned(compile_plan(traced, "executed"), Point(batch, length)) == executed(model, inputs, Point(batch, length))


@pytest.mark.parametrize(
    ("package", "configs", "options"),
    [
        ("llama3", "llama3_configs", {}),
        ("deepseek_v3", "deepseekv3_configs", {"moe_comm_backend": "standard"}),
    ],
)
def test_torchtitan(package, configs, options):
    pytest.importorskip("torchtitan")
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    models = importlib.import_module(f"torchtitan.models.{package}")
    model = getattr(models, configs)["debugmodel"](attn_backend="flex", **options).build()

    def inputs(point):
        places = torch.arange(point.length).expand(point.batch, -1)
        mask = flex.create_block_mask(causal, None, None, point.length, point.length, device="cpu")
        ids = torch.zeros(point.batch, point.length, dtype=torch.long)
        return {"tokens": ids, "positions": places, "attention_masks": mask}

    traced = trace(model, inputs)
    assert traced.not_counted == ()
    plan = compile_plan(traced, "executed")
    for module in model.modules():  # a CPU runs it forward alone, so the same products stand for it
        if hasattr(module, "inner_attention"):
            module.inner_attention = Products()
    assert planned(plan, Point(3, 21)) == executed(model, inputs, Point(3, 21))


def test_what_is_tried_writes_nothing_and_leaves_the_log_as_it_was():
    log, seen = logging.getLogger("torch._subclasses.fake_tensor"), []

    def inputs(point):
        seen.append(log.disabled)
        return {"input": torch.zeros(point.batch, point.length, dtype=torch.long)}

    trace(nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11)), inputs)
    assert (set(seen), log.disabled) == ({True}, False)


def test_a_forward_pass_that_leads_back_to_the_model_is_refused_and_leaves_no_gradient():
    """A copy's closure runs the module itself, whose gradients would be without memory from then on."""
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))
    inner = model.forward
    model.forward = lambda tokens: inner(tokens)
    model[1].weight.grad = kept = torch.ones(11, 8)
    with pytest.raises(ConfigError, match="Sequential cannot be traced: its forward pass was replaced by a function that refers"):
        trace(model)
    assert model[0].weight.grad is None
    assert model[1].bias.grad is None
    assert model[1].weight.grad is kept
    assert kept.sum() == 88


def causal(b, h, q, kv):
    return q >= kv


class Products(nn.Module):
    """Attention over tokens x heads x width, as fused attention is counted."""

    def forward(self, q, k, v, **_):
        groups = q.shape[2] // k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
