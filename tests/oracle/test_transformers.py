"""The plan's integer equals what torch counts while transformers runs the model: no tolerance anywhere."""

from __future__ import annotations

from random import Random

import pytest

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from bridge.config import PeftConfig, from_huggingface  # noqa: E402
from bridge.flops import compile_plan  # noqa: E402
from oracle import transformers_models as oracle  # noqa: E402

FAMILIES = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gemma", "gemma2",
    "gemma3_text", "gpt_oss", "phi3", "olmo2", "olmo3", "olmoe", "glm4_moe",
)  # fmt: skip
#: Trained in full only: the names of their modules are not translated.
MORE = (
    "apertus", "arcee", "bloom", "cohere", "cohere2", "cwm", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe",
    "falcon", "gemma4_text", "glm", "glm4", "glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "granite_swa",
    "granitemoe", "granitemoe_swa", "granitemoeshared", "hunyuan_v1_dense", "hy_v3", "hyperclovax", "internlm3",
    "iquestcoder", "jais2", "lfm2", "lfm2_moe", "mimo_v2_flash", "minicpm3", "minimax_m2", "ministral", "ministral3",
    "mistral4", "nemotron", "olmo", "opt", "phi", "phimoe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2",
    "vaultgemma", "youtu",
)  # fmt: skip
SHAPES = range(4)

drawn = pytest.mark.parametrize("seed", SHAPES)
family = pytest.mark.parametrize("model_type", FAMILIES)


def batch(random: Random) -> tuple[int, int]:
    """A number of sequences and their length."""
    return random.randint(1, 3), random.randint(2, 20)


@pytest.mark.all(but=["*-0"])
@drawn
@family
def test_full_training(model_type: str, seed: int) -> None:
    check_full_training(model_type, seed, device="meta")


@pytest.mark.all(but=["*-0"])
@pytest.mark.parametrize("seed", SHAPES[:2])
@pytest.mark.parametrize("model_type", MORE)
def test_full_training_of_more_families(model_type: str, seed: int) -> None:
    check_full_training(model_type, seed, device="cpu")


def check_full_training(model_type: str, seed: int, device: str) -> None:
    """Forward, forward and backward, and the number of parameters; one sequence and several."""
    config = oracle.draw(model_type, seed)
    model = oracle.build(config, device=device)
    configuration = from_huggingface(config)
    plan = compile_plan(configuration, convention="executed")
    sequences, length = 1 + seed, Random(model_type).randint(2, 20)
    assert plan.flops([length] * sequences, passes="forward") == oracle.forward(model, sequences, length)
    assert plan.flops([length] * sequences, passes="training") == oracle.training(model, sequences, length)
    if not any("parameter count" in sentence for sentence in configuration.not_counted):
        assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())


@drawn
def test_shared_experts_of_width_0_keep_their_gate(seed: int) -> None:
    config = oracle.draw("qwen2_moe", seed)
    config.shared_expert_intermediate_size, config.mlp_only_layers, config.decoder_sparse_step = 0, [], 1
    model = oracle.build(config)
    plan = compile_plan(from_huggingface(config), convention="executed")
    assert plan.flops([7, 7], passes="forward") == oracle.forward(model, 2, 7)
    assert plan.flops([7, 7]) == oracle.training(model, 2, 7)
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.all(but=["*-0"])
@drawn
@family
def test_frozen_parts(model_type: str, seed: int) -> None:
    """Any set of modules may train: single norms, a router, the embedding, the upper layers, ..."""
    random = Random(f"{model_type} {seed}")
    config = oracle.draw(model_type, seed)
    model = oracle.build(config, device="cpu")  # faster than meta at this size
    modules = oracle.modules(model)
    share = random.choice([0.05, 0.2, 0.5, 0.9])
    trained = [name for name in modules if random.random() < share] or [random.choice(list(modules))]
    for name, parameters in modules.items():
        for parameter in parameters:
            parameter.requires_grad_(name in trained)
    paths = {path for name in trained for path in oracle.paths(name, modules)}
    plan = compile_plan(from_huggingface(config), convention="executed", trainable=paths.__contains__)
    size = batch(random)
    assert plan.flops([size[1]] * size[0], passes="training") == oracle.training(model, *size)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert plan.parameters()["trainable"] == trainable


@pytest.mark.all(but=["*-0"])
@drawn
@family
def test_lora(model_type: str, seed: int) -> None:
    """peft's adapters on drawn layers; everything else is frozen."""
    random = Random(f"{model_type} {seed}")
    config = oracle.draw(model_type, seed)
    model = oracle.build(config, device="cpu")
    names = {name.rsplit(".", 1)[-1] for name in oracle.linear_layers(model)}
    targets = random.sample(sorted(names), random.randint(1, len(names)))
    rank, size = random.randint(1, 9), batch(random)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules=targets))
    configuration = from_huggingface(config)
    ours = [oracle.adapter_target(target, config) for target in targets]
    configuration.peft = PeftConfig(dim=rank, target_modules=ours)
    plan = compile_plan(configuration, convention="executed")
    lengths = [size[1]] * size[0]
    assert plan.flops(lengths, passes="forward") == oracle.forward(adapted, *size)
    assert plan.flops(lengths, passes="training") == oracle.training(adapted, *size)
    parameters = [(p.numel(), p.requires_grad) for p in adapted.parameters()]
    assert plan.parameters()["total"] == sum(number for number, _ in parameters)
    assert plan.parameters()["trainable"] == sum(number for number, trains in parameters if trains)
