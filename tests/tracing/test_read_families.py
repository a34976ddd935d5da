"""Families that a reader knows, as their configurations say and as they run: equal, in full, with adapters, and partly frozen."""

import re

import pytest

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from oracle import transformers_models as oracle  # noqa: E402
from oracle.test_transformers import FAMILIES, MORE  # noqa: E402

from bridge.config.sources.huggingface_config import read_by_row  # noqa: E402
from bridge.config.sources.huggingface_model import _read  # noqa: E402
from bridge.flops import compile_plan  # noqa: E402
from bridge.flops.conventions import CONVENTIONS  # noqa: E402
from bridge.tracing import trace  # noqa: E402
from tests.tracing.models import assert_equal  # noqa: E402

LENGTHS = {"sequence_lengths": [77, 33, 5]}
LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
ADAPTED = {"q_proj", "v_proj", "o_proj", "qkv_proj", "q_a_proj", "kv_b_proj", "up_proj", "down_proj"}


def in_the_lower_half(name):
    """Whether a parameter of transformers belongs to the first layer or to what stands before it."""
    layer = LAYER.search(name)
    return layer[1] == "0" if layer else re.search(r"embed(?!ding_norm)|wte|wpe", name) is not None


def full(model):
    return read_by_row(model.config.to_dict()), model, None


def with_adapters(model):
    names = {name.rsplit(".", 1)[-1] for name in oracle.linear_layers(model)}
    targets = sorted(names & ADAPTED)
    # The dense MLP beside Gemma 4's experts has another name in a plan.
    if not targets or model.config.model_type == "gemma4_text":
        pytest.skip("adapters on layers of these names are traced")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=targets))
    return _read(adapted), adapted, None


def frozen(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not in_the_lower_half(name))
    return read_by_row(model.config.to_dict()), model, lambda path: not re.match(r"embedding|decoder\.layers\.0\.", path)


@pytest.mark.all(but=("qwen2-with_adapters", "granite-frozen"))
@pytest.mark.parametrize("how", [full, with_adapters, frozen], ids=lambda how: how.__name__)
@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_traced_and_read(family, how):
    read, model, trainable = how(oracle.build(oracle.draw(family, 0), device="cpu"))
    traced = trace(model)
    # Some apply their own masks, which cannot be read: then all pairs are counted, as they are executed.
    masked = any("which keys a query sees was not read" in sentence for sentence in traced.not_counted)
    # A causal convolution of transformers runs on the padding at both ends too, which a trace cannot tell from the tokens.
    padded = read.model.short_conv_layers is not None
    # ERNIE's correction biases are parameters that no gradient trains.
    kinds = ("total", "active") if family == "ernie4_5_moe" else ("total", "active", "trainable")
    for convention in ["executed"] if padded else ["executed", "palm"] if masked else CONVENTIONS:
        one, other = compile_plan(traced, convention), compile_plan(read, convention, trainable=trainable)
        assert_equal(one, other, convention, LENGTHS)
        assert [one.parameters()[kind] for kind in kinds] == [other.parameters()[kind] for kind in kinds]
