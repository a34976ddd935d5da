"""Diffusion transformers of diffusers, executed: Flux with and without guidance, DiT; drawn shapes. Blocks by hand."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bridge.flops import ConfigError, compile_plan
from bridge.flops.components import diffusion
from tests.flops.components.blocks import priced

diffusers = pytest.importorskip("diffusers")


def count(run):
    """FLOPs of a forward pass, and with its backward pass; the attention kernel made of ordinary matmuls."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = run()
        forward = counter.get_total_flops()
        output.sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("seed", range(4))
def test_flux(seed):
    random = Random(seed)
    heads, text, pooled, channels = (random.randint(1, 4) * size for size in (1, 8, 4, 4))
    config = {
        "in_channels": channels, "num_layers": random.randint(1, 3), "num_single_layers": random.randint(1, 3),
        "attention_head_dim": 16, "num_attention_heads": heads, "joint_attention_dim": text,
        "pooled_projection_dim": pooled, "guidance_embeds": bool(seed % 2),
    }  # fmt: skip
    model = diffusers.FluxTransformer2DModel(patch_size=1, axes_dims_rope=(4, 6, 6), **config)
    batch, image_tokens, text_tokens = random.randint(1, 3), random.randint(1, 20), random.randint(1, 9)
    counted = count(
        lambda: (
            model(
                hidden_states=torch.zeros(batch, image_tokens, channels),
                encoder_hidden_states=torch.zeros(batch, text_tokens, text),
                pooled_projections=torch.zeros(batch, pooled),
                timestep=torch.ones(batch),
                guidance=torch.ones(batch) if config["guidance_embeds"] else None,
                img_ids=torch.zeros(image_tokens, 3),
                txt_ids=torch.zeros(text_tokens, 3),
            ).sample
        )
    )
    plan = compile_plan({"diffusion_config": config}, "executed", framework="transformers")
    lengths = {"sequence_lengths": [image_tokens] * batch, "encoder_lengths": [text_tokens] * batch}
    assert (plan.flops(**lengths, passes="forward"), plan.flops(**lengths)) == counted
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("seed", range(4))
def test_dit(seed):
    random = Random(seed)
    patch, side = random.choice([1, 2]), random.choice([4, 6])
    config = {
        "num_attention_heads": random.randint(1, 4), "attention_head_dim": 8, "in_channels": random.randint(1, 4),
        "out_channels": random.randint(1, 8), "num_layers": random.randint(1, 3), "patch_size": patch,
        "num_embeds_ada_norm": random.randint(2, 20),
    }  # fmt: skip
    model = diffusers.DiTTransformer2DModel(sample_size=side, **config)
    batch = random.randint(1, 3)
    counted = count(
        lambda: (
            model(
                hidden_states=torch.zeros(batch, config["in_channels"], side, side),
                timestep=torch.ones(batch),
                class_labels=torch.zeros(batch, dtype=torch.long),
            ).sample
        )
    )
    plan = compile_plan({"diffusion_config": config}, "executed", framework="transformers")
    lengths = [(side // patch) ** 2] * batch
    assert (plan.flops(lengths, passes="forward"), plan.flops(lengths)) == counted
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_missing_size_is_named():
    with pytest.raises(ConfigError, match="model.diffusion_config.num_layers is missing"):
        compile_plan({"diffusion_config": {"in_channels": 4}})


@pytest.mark.parametrize(("text", "norms"), [(False, 0), (True, 4 * 4)])
def test_a_joint_block_by_hand(text, norms):
    """Width 8 in two heads, MLP 32: adaLN of six vectors per sample; four square matrices and an MLP per token."""
    terms = diffusion.joint_block(hidden_size=8, num_attention_heads=2, ffn_hidden_size=32, head_norm=text, text=text)
    streams = [(5, 1), (3, 1)] if text else [(5, 1)]
    tokens = sum(length for length, _ in streams)
    weights = 4 * 64 + 2 * 8 * 32
    forward = 2 * (tokens * weights + len(streams) * 6 * 64 + 2 * tokens**2 * 8)
    found = priced(terms, sequence_lengths=[5], encoder_lengths=[3])
    assert found[0] == forward
    assert found[2] == len(streams) * (weights + 4 * 8 + 32 + 8 + 6 * 64 + 6 * 8) + norms


def test_a_single_block_by_hand():
    terms = diffusion.single_block(hidden_size=8, num_attention_heads=2, ffn_hidden_size=32)
    forward = 2 * (8 * (3 * 64 + 8 * 32 + (8 + 32) * 8) + 3 * 64 + 2 * 8**2 * 8)
    assert priced(terms, sequence_lengths=[5], encoder_lengths=[3])[0] == forward


def test_no_class_is_a_row_of_the_table():
    label = diffusion.class_labels(num_classes=10, hidden_size=8)
    assert priced([label], sequence_lengths=[5]) == (0, 0, 11 * 8)
