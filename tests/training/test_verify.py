"""The judge: a plan whose parameters are the built model's says so; one of another model is named, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from bridge.config import from_huggingface  # noqa: E402
from bridge.flops import compile_plan  # noqa: E402
from bridge.flops.plan import Plan  # noqa: E402
from bridge.training.trainable import Built, Weights, what_is_built  # noqa: E402
from bridge.training.verify import Verified, compare  # noqa: E402

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
}
LLAMA = transformers.LlamaConfig(**SIZES)
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
LATENT = {
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1, "moe_intermediate_size": 16,
}  # fmt: skip


def built(kind: str, config: Any) -> Any:
    with torch.device("meta"):
        return getattr(transformers, kind)(config)


def plan_of(described: Any, convention: str = "exact") -> Plan:
    return compile_plan(from_huggingface(described), convention)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("LlamaForCausalLM", LLAMA),
        ("LlamaForCausalLM", transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)),
        ("LlamaForCausalLM", transformers.LlamaConfig(**SIZES, attention_bias=True)),
        ("Qwen2ForCausalLM", transformers.Qwen2Config(**SIZES)),
        ("Phi3ForCausalLM", transformers.Phi3Config(**SIZES, pad_token_id=0)),
        ("Qwen3MoeForCausalLM", transformers.Qwen3MoeConfig(**SIZES, **EXPERTS)),
        ("DeepseekV3ForCausalLM", transformers.DeepseekV3Config(**SIZES, **LATENT)),
    ],
)
@pytest.mark.parametrize("convention", ["megatron", "exact", "executed"])
def test_every_module_is_the_plans(kind: str, config: Any, convention: str) -> None:
    plan, model = plan_of(config, convention), built(kind, config)
    assert plan.verify(model) == Verified(equal=True)
    assert sum(plan.parameters_by_module().values()) == sum(parameter.numel() for parameter in model.parameters())


def test_other_names_are_compared_in_total() -> None:
    config = transformers.Gemma2Config(**SIZES, head_dim=16)
    said = plan_of(config).verify(built("Gemma2ForCausalLM", config))
    assert said == Verified(equal=True, reason="compared in total: the plan has other names for some modules")
    assert said.facts == {"verified": "parameters", "verified_details": [said.reason]}


@pytest.mark.parametrize(
    ("kind", "options", "differences"),
    [
        ("LlamaModel", {}, ["output_layer: plan 128 x 64, model has none"]),
        (
            "LlamaForSequenceClassification",
            {},
            ["output_layer: plan 128 x 64, model has none", "score: plan has none, model 2 x 64"],
        ),
        (
            "LlamaForCausalLM",
            {"num_hidden_layers": 4},
            # Each: 64 x (64 + 32 + 32 + 64) of attention, 3 x 64 x 96 of the MLP, two norms.
            ["decoder.layers.* (2 layers): plan has none, model 30,848"],
        ),
        ("LlamaForCausalLM", {"num_hidden_layers": 1}, ["decoder.layers.1: plan 30,848, model has none"]),
        (
            "LlamaForCausalLM",
            {"intermediate_size": 100},
            [
                "decoder.layers.*.mlp.linear_fc1 (2 layers): plan 12,288, model 12,800",
                "decoder.layers.*.mlp.linear_fc2 (2 layers): plan 64 x 96, model 64 x 100",
            ],
        ),
        # As many parameters, elsewhere.
        (
            "LlamaForCausalLM",
            {"num_key_value_heads": 1, "intermediate_size": 96 + 2},
            [
                "decoder.layers.*.self_attention.linear_qkv (2 layers): plan 8,192, model 6,144",
                "decoder.layers.*.mlp.linear_fc1 (2 layers): plan 12,288, model 12,544",
                "decoder.layers.*.mlp.linear_fc2 (2 layers): plan 64 x 96, model 64 x 98",
            ],
        ),
    ],
)
def test_what_differs_is_named_with_both_numbers(kind: str, options: dict[str, int], differences: list[str]) -> None:
    model = built(kind, transformers.LlamaConfig(**{**SIZES, **options}))
    said = plan_of(LLAMA).verify(model)
    assert said == Verified(differences=tuple(differences))
    assert said.facts == {"verified": "no", "verified_details": differences}


def test_equal_totals_do_not_hide_modules_that_differ() -> None:
    plan = plan_of(LLAMA)
    modules = dict(what_is_built(built("LlamaForCausalLM", LLAMA)).modules)
    query, down = ("model.layers.0.self_attn.o_proj", False), ("model.layers.0.mlp.down_proj", False)
    modules[query], modules[down] = Weights(True, 64 * 96, (64, 96)), Weights(True, 64 * 64, (64, 64))
    assert compare(plan, Built(modules)).differences == (
        "decoder.layers.0.self_attention.linear_proj: plan 64 x 64, model 64 x 96",
        "decoder.layers.0.mlp.linear_fc2: plan 64 x 96, model 64 x 64",
    )


def test_a_plain_module_is_held_by_its_total() -> None:
    plan = plan_of(LLAMA)
    said = plan.verify(torch.nn.Linear(3, 4))
    assert said == Verified(differences=("the whole model: plan 78,144, model 16",), reason="no module is known by its name")
    # The same size by any other name.
    flat = torch.nn.ParameterList([torch.nn.Parameter(torch.empty(78144, device="meta"))])
    assert plan.verify(flat) == Verified(equal=True, reason="compared in total: the plan has other names for some modules")


def test_what_stands_in_front_of_a_model_is_seen() -> None:
    whole = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2, device="meta"), built("LlamaForCausalLM", LLAMA))
    assert plan_of(LLAMA).verify(whole).differences == ("0: plan has none, model 52",)


def test_adapters_are_modules_too() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(built("LlamaForCausalLM", LLAMA), peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    assert plan_of(model).verify(model) == Verified(equal=True)
    assert plan_of(LLAMA).verify(model).differences == (
        "decoder.layers.*.mlp.linear_fc2.adapter (2 layers): plan has none, model 640",
        "decoder.layers.*.self_attention.linear_q (2 layers): plan has none, model 512",
    )


def test_a_frozen_model_is_the_same_model() -> None:
    model = built("LlamaForCausalLM", LLAMA)
    model.model.requires_grad_(False)
    assert plan_of(LLAMA).verify(model) == Verified(equal=True)


def test_what_a_plan_leaves_out_by_its_own_word_is_no_alarm() -> None:
    config = from_huggingface(LLAMA)
    config.not_counted = ["something in front"]
    whole = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2, device="meta"), built("LlamaForCausalLM", LLAMA))
    said = compile_plan(config, "exact").verify(whole)
    assert said == Verified(reason="the plan leaves out something in front; of it are 0: plan has none, model 52")
    headless = compile_plan(config, "exact").verify(built("LlamaModel", LLAMA))
    assert headless.differences == ("output_layer: plan 128 x 64, model has none",)


def marked(**marks: Any) -> Any:
    """A model with one parameter that carries the marks of a library."""
    model = torch.nn.Linear(3, 4, bias=False)
    for name, value in marks.items():
        setattr(model.weight, name, value)
    return model


def quantised() -> Any:
    model = torch.nn.Linear(3, 4)
    model.weight = torch.nn.Parameter(torch.zeros(6, 1, dtype=torch.uint8), requires_grad=False)
    return model


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_sharded_model_is_no_alarm(one_rank: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    plan = plan_of(LLAMA)
    for original in (False, True):
        flat = FullyShardedDataParallel(torch.nn.Linear(3, 4), device_id=torch.device("cpu"), use_orig_params=original)
        assert plan.verify(flat) == Verified(reason="not compared: its parameters are sharded (FSDP)")
    cut = fully_shard(torch.nn.Linear(3, 4), mesh=init_device_mesh("cpu", (1,)))
    assert plan.verify(cut) == Verified(reason="not compared: its parameters are sharded (FSDP)")
    tensors = torch.nn.Linear(3, 4)
    mesh = init_device_mesh("cpu", (1,))
    torch.distributed.tensor.distribute_module(tensors, mesh)
    assert plan.verify(tensors) == Verified(reason="not compared: its parameters are sharded (DTensor, FSDP)")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (marked(ds_id=3), "its parameters are partitioned (DeepSpeed)"),
        (quantised(), "its weights are quantized"),
        (torch.nn.LazyLinear(4), "some of its parameters have no size yet"),
        (torch.nn.Identity(), "no model was given"),
        ([], "no model was given"),
        (SimpleNamespace(), "its modules cannot be read"),
    ],
)
def test_a_model_that_cannot_be_counted_is_no_alarm(model: Any, reason: str) -> None:
    said = plan_of(LLAMA).verify(model)
    assert said == Verified(reason=f"not compared: {reason}")
    assert said.facts == {"verified": "no", "verified_details": [said.reason]}


def test_transformer_engines_names_are_the_plans() -> None:
    """It keeps a norm in the linear layer behind it, and the experts of a rank side by side."""
    names = {
        "self_attention.linear_qkv.layer_norm_weight": ("input_layernorm", False),
        "self_attention.linear_qkv.layer_norm_bias": ("input_layernorm", True),
        "self_attention.linear_q_up_proj.layer_norm_weight": ("self_attention.q_layernorm", False),
        "self_attention.linear_kv_up_proj.layer_norm_weight": ("self_attention.kv_layernorm", False),
        "mlp.linear_fc1.layer_norm_weight": ("pre_mlp_layernorm", False),
        "mlp.linear_fc1.bias": ("mlp.linear_fc1", True),
        "mlp.experts.linear_fc1.weight0": ("mlp.experts.linear_fc1", False),
        "mlp.experts.linear_fc1.weight11": ("mlp.experts.linear_fc1", False),
    }
    layer = torch.nn.Module()
    for name in names:
        *parents, leaf = name.split(".")
        home = layer
        for parent in parents:
            if not hasattr(home, parent):
                home.add_module(parent, torch.nn.Module())
            home = getattr(home, parent)
        home.register_parameter(leaf, torch.nn.Parameter(torch.zeros(2, 3)))
    model = torch.nn.Module()
    model.decoder = torch.nn.Module()
    model.decoder.layers = torch.nn.ModuleList([layer])
    found = what_is_built(model).modules
    assert set(found) == {(f"decoder.layers.0.{path}", bias) for path, bias in names.values()}
    assert found["decoder.layers.0.mlp.experts.linear_fc1", False].entries == 12


def test_a_large_model_costs_less_than_a_second() -> None:
    """Llama 3 70B's sizes: 723 parameters of 70.55 B entries."""
    import time

    config = transformers.LlamaConfig(
        hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, intermediate_size=28672,
        vocab_size=128256,
    )  # fmt: skip
    plan, model = plan_of(config), built("LlamaModel", config)
    start = time.process_time()
    said = plan.verify(model)
    assert time.process_time() - start < 2  # 0.5 s; on a machine that is shared
    assert said.differences == ("output_layer: plan 128,256 x 8,192, model has none",)
    assert sum(plan.parameters_by_module().values()) == 70_553_706_496
