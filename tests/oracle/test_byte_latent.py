"""The byte-latent plan equals what torch counts while transformers runs BLT: no tolerance.

The models are tiny and run on the CPU: BLT looks at values (entropies, patch lengths), which the meta device does not have.
"""

from __future__ import annotations

from random import Random

import pytest
import torch

pytest.importorskip("transformers")
from transformers.models.blt import BltConfig, BltForCausalLM

from bridge.flops import compile_plan
from oracle.counter import count

SEEDS = range(6)


def draw(seed: int) -> BltConfig:
    random = Random(seed)

    def stack(width: int | None = None) -> dict[str, object]:
        groups = random.randint(1, 2)
        heads = groups * random.randint(1, 2)
        return {
            "hidden_size": width or 2 * heads * random.randint(2, 6),
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "num_hidden_layers": random.randint(1, 3),
            "intermediate_size": random.choice([None, random.randint(9, 50)]),
        }

    encoder = stack()
    decoder = stack()
    decoder["hidden_size"] = encoder["hidden_size"] = 8 * encoder["num_attention_heads"] * decoder["num_attention_heads"]
    latent, k = stack(), random.randint(1, 3)
    if random.random() < 0.3:
        latent["hidden_size"] = k * encoder["hidden_size"]
        latent["num_attention_heads"] = latent["num_key_value_heads"] = 2
    decoder["hidden_size_global"] = latent["hidden_size"]
    shared = {"cross_attn_k": k, "vocab_size": 260}
    for part in encoder, decoder:
        part |= shared | {"cross_attn_all_layers": random.random() < 0.5}
    for part in decoder, latent:  # an int is wanted there; 0 means 8/3 of the width
        part["intermediate_size"] = part["intermediate_size"] or 0
    return BltConfig(
        encoder_config=encoder,
        decoder_config=decoder,
        global_config=latent,
        patcher_config=stack() | {"intermediate_size": 21},
        cross_attn_k=k,
        encoder_hash_byte_group_size=[3, 4],
        encoder_hash_byte_group_vocab=random.randint(20, 60),
        local_attention_window_len=random.choice([None, 4]),
        attn_implementation="eager",
    )


def logits(model: BltForCausalLM, patches: list[int], batch_size: int) -> torch.Tensor:
    tokens = torch.zeros(batch_size, sum(patches), dtype=torch.long)
    # The patcher runs first, then the model on the patches it found.
    model.model.patcher(tokens)
    return model(input_ids=tokens, patch_lengths=torch.tensor([patches] * batch_size), use_cache=False).logits


@pytest.mark.parametrize("seed", SEEDS)
def test_forward_training_and_parameters(seed: int) -> None:
    config = draw(seed)
    model = BltForCausalLM(config)
    random = Random(seed)
    patches = [random.randint(1, 6) for _ in range(random.randint(2, 6))]
    batch_size = random.randint(1, 2)
    plan = compile_plan(config, "executed")
    sizes, numbers = [sum(patches)] * batch_size, [len(patches)] * batch_size
    assert plan.flops(sizes, passes="forward", byte_patches=numbers) == count(lambda: logits(model, patches, batch_size))
    assert plan.flops(sizes, byte_patches=numbers) == count(lambda: logits(model, patches, batch_size).sum().backward())
    found = plan.parameters()
    assert found["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["trainable"] == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_the_defaults_are_those_of_the_published_model() -> None:
    config = BltConfig()
    with torch.device("meta"):
        model = BltForCausalLM(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    plans = [compile_plan(source, "exact") for source in (config, config.to_dict(), {"byte_latent_config": {}})]
    assert [plan.parameters()["total"] for plan in plans] == [total] * 3
    first, *others = (plan.breakdown([900], byte_patches=[200]) for plan in plans)
    assert others == [first, first]
