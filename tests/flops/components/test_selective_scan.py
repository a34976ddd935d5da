"""Mamba's first generation beside transformers' mixers: Mamba's own, and Jamba's with its norms."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from oracle.counter import count
from torch import nn
from transformers import JambaConfig, MambaConfig
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

from bridge.flops import compile_plan
from bridge.flops.components.registry import MIXERS
from bridge.flops.frameworks import MEGATRON
from bridge.flops.layer_pattern import decoder_layers
from bridge.flops.reading import read
from bridge.flops.terms import Kind, Pass
from bridge.planning.kv_cache import layer_caches
from tests.flops.components.blocks import SMALL, in_layer, linears, plan_of

#: 24 wide inside, a state of 5, steps from 3 channels; four taps, as in Mamba's own configuration.
FIELDS = {
    "selective_scan_layers": [1], "selective_scan_inner_size": 24, "selective_scan_state_dim": 5, "selective_scan_dt_rank": 3,
}  # fmt: skip


def mamba(conv_bias: bool, proj_bias: bool) -> nn.Module:
    config = MambaConfig(
        hidden_size=12, state_size=5, expand=2, conv_kernel=4, time_step_rank=3, use_conv_bias=conv_bias, use_bias=proj_bias,
        num_hidden_layers=1,
    )  # fmt: skip
    return MambaMixer(config, 0)


def jamba(conv_bias: bool, proj_bias: bool) -> nn.Module:
    config = JambaConfig(
        hidden_size=12, mamba_d_state=5, mamba_expand=2, mamba_d_conv=4, mamba_dt_rank=3, mamba_conv_bias=conv_bias,
        mamba_proj_bias=proj_bias, num_attention_heads=4,
    )  # fmt: skip
    return JambaMambaMixer(config, 0)


@pytest.mark.parametrize(("conv_bias", "proj_bias"), [(True, False), (False, True)])
@pytest.mark.parametrize("build", [mamba, jamba])
def test_every_weight(build, conv_bias, proj_bias):
    module = build(conv_bias, proj_bias)
    fields = {
        "selective_scan_conv_bias": conv_bias,
        "selective_scan_proj_bias": proj_bias,
        "selective_scan_norms": build is jamba,
    }
    terms = in_layer(FIELDS | fields)
    plan = plan_of([term for term in terms if term.kind is not Kind.SCAN])
    convolution = count(lambda: nn.Conv1d(24, 24, 4, groups=24)(torch.zeros(1, 24, 3 + 7)))
    assert plan.flops([7], passes="forward") == linears(module, 7) + convolution
    assert plan_of(terms).parameters()["total"] == sum(parameter.numel() for parameter in module.parameters())


def test_seven_operations_an_entry_of_the_state():
    scan = [term for term in in_layer(FIELDS) if term.kind is Kind.SCAN]
    assert plan_of(scan, "exact").flops([7], passes="forward") == 7 * 7 * 24 * 5


@pytest.mark.parametrize("trained", ["mixer.dt_proj", "mixer.x_proj", "mixer.in_proj", "mixer.A_log", "mixer.D"])
def test_whose_gradient_needs_the_scans(trained):
    """Everything that flows into the scan asks for its backward pass; D is added behind it."""
    (scan,) = [t for t in plan_of(in_layer(FIELDS), trains=trained.__eq__).terms if t.kind is Kind.SCAN]
    assert (scan.passes != Pass.FORWARD) == (trained != "mixer.D")


def test_a_layer_is_one_where_the_list_says_so():
    shape = read(SMALL | FIELDS | {"num_layers": 3, "selective_scan_layers": [1, 0, 1]}).shape
    assert [layer.mixer for layer in decoder_layers(shape)] == ["selective_scan", "attention", "selective_scan"]
    kept = [[(cache.entries, cache.is_state) for cache in layer] for layer in layer_caches(shape)]
    scan = [(24 * 5, True), (3 * 24, False)]
    assert kept == [scan, [(2 * 4 * 3, False)], scan]


def test_what_runs_is_another_computation():
    sentence = (
        "selective_scan: its scan is counted as 7 FLOPs per token and entry of the state; transformers' own code runs one matrix "
        "product per token there, and fused kernels none"
    )
    assert MIXERS["selective_scan"].executed(MEGATRON) == sentence
    assert compile_plan(SMALL | FIELDS, "executed").not_counted == (sentence,)
    assert compile_plan(SMALL | FIELDS, "exact").not_counted == ()
