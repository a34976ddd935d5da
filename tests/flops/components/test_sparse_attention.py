"""DeepSeek's sparse attention: transformers' indexer, megatron-core's loss of it, and which layers choose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from oracle.counter import count
from torch import Tensor
from transformers import DeepseekV32Config
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Indexer

from bridge.flops import ConfigError, compile_plan
from bridge.flops.components.registry import MIXERS
from bridge.flops.components.sparse_attention import chooses, indexer
from bridge.flops.frameworks import FRAMEWORKS
from bridge.flops.reading import read
from bridge.flops.terms import Context, Kind, Role
from bridge.planning.kv_cache import layer_caches
from tests.flops.components.blocks import SMALL, in_layer, macs, plan_of, priced, turns

LATENT = {"q_lora_rank": 7, "kv_lora_rank": 9, "qk_head_dim": 5, "qk_pos_emb_head_dim": 4, "v_head_dim": 3}
#: Three heads of 6 choose two keys.
FIELDS: dict[str, Any] = LATENT | {
    "experimental_attention_variant": "dsa", "dsa_indexer_n_heads": 3, "dsa_indexer_head_dim": 6, "dsa_indexer_topk": 2,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "hidden_size": 12, "q_input_size": 7, "num_heads": 3, "head_dim": 6, "selected": Context("topk", (2,)), "teacher_heads": 4,
    "teacher_head_size": 13,
}  # fmt: skip
TOKENS = 8


def of_deepseek() -> DeepseekV32Indexer:
    config = DeepseekV32Config(
        hidden_size=12, num_attention_heads=4, q_lora_rank=7, qk_rope_head_dim=4, index_n_heads=3, index_head_dim=6, index_topk=2
    )
    return DeepseekV32Indexer(config, 0)


def test_the_indexer_of_deepseek_v32():
    """It looks at values that need no gradient, and chooses: nothing of it runs backward."""
    module, mask = of_deepseek(), torch.zeros(1, TOKENS, TOKENS)
    run = count(lambda: module(torch.zeros(1, TOKENS, 12), torch.zeros(1, TOKENS, 7), turns(TOKENS, 4), mask, None))
    entries = sum(parameter.numel() for parameter in module.parameters())
    assert priced(indexer(**SIZES, trains=False, sparse_loss=False), sequence_lengths=[TOKENS]) == (run, run, entries)


@pytest.mark.parametrize("sparse", [False, True])
def test_its_loss_as_megatron_core_computes_it(sparse):
    """Main attention's scores are the target; scores and projections of the indexer run backward, into detached states."""
    dsa = pytest.importorskip("megatron.core.transformer.experimental_attention_variant.dsa")
    module = of_deepseek()
    query, key = torch.ones(TOKENS, 1, 4, 13), torch.ones(TOKENS, 1, 4, 13)
    states, latents = torch.ones(1, TOKENS, 12), torch.ones(1, TOKENS, 7)

    def loss() -> Tensor:
        asked = module.wq_b(latents).unflatten(-1, (3, 6))
        scores = torch.matmul(asked, module.k_norm(module.wk(states)).transpose(1, 2)[:, None]).relu()
        scores = torch.matmul(module.weights_proj(states)[:, :, None], scores)[:, :, 0]
        chosen = torch.zeros(1, TOKENS, 2, dtype=torch.long)
        alone = SimpleNamespace(tp=SimpleNamespace(size=lambda: 1))
        return dsa.compute_dsa_indexer_loss(scores, chosen, query, key, 1.0, 0.1, sparse, alone)

    terms = indexer(**SIZES, trains=True, sparse_loss=sparse)
    found = priced(terms, sequence_lengths=[TOKENS])
    run = count(loss), count(lambda: loss().backward()), sum(parameter.numel() for parameter in module.parameters())
    assert found == run


def test_a_sparse_loss_looks_at_the_chosen_keys_alone():
    pairs = {False: TOKENS * (TOKENS + 1) // 2, True: sum(min(position, 2) for position in range(1, TOKENS + 1))}
    for sparse, seen in pairs.items():
        terms = indexer(**SIZES, trains=True, sparse_loss=sparse)
        plan = plan_of([term for term in terms if term.kind is Kind.CORE], "exact")
        assert plan.flops([TOKENS], passes="forward") == 2 * (pairs[False] * 3 * 7 + seen * 4 * 13)
    (teacher,) = [term for term in terms if term.name == "teacher_scores"]
    assert teacher.roles == Role.TRAINING_ONLY


@pytest.mark.parametrize(("coefficient", "trains"), [(None, False), (0.0, False), (0.001, True)])
def test_a_coefficient_makes_the_loss(coefficient, trains):
    names = [term.name for term in in_layer(FIELDS | {"dsa_indexer_loss_coeff": coefficient})]
    assert ("teacher_scores" in names, "index_scores_gradient" in names) == (trains, trains)


@pytest.mark.parametrize(("tokens", "counted"), [(1, 0), (2, 0), (3, 1)])
def test_maxtext_counts_it_where_sequences_are_longer_than_what_it_chooses(tokens, counted):
    """As any layer then: three passes of the projections, and of half a square of scores."""
    terms = [term for term in in_layer(FIELDS, convention="maxtext") if term.component == "indexer"]
    plan = plan_of(terms, "maxtext", framework="megatron")
    forward = 2 * counted * (tokens * (7 * 18 + 12 * 6 + 12 * 3) + tokens**2 * 3 * 7 / 2)
    assert plan.flops([tokens], passes="forward") == forward
    assert plan.flops([tokens]) == 3 * forward


@pytest.mark.parametrize(("rank", "width"), [(7, 7), (None, 12)])
def test_queries_come_from_the_latent_or_from_the_stream(rank, width):
    (queries,) = [term for term in in_layer(FIELDS | {"q_lora_rank": rank}) if term.name == "linear_wq_b"]
    assert (queries.k, queries.n) == (width, 18)


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"dsa_indexer_topk_freq": 2}, [1, 0, 1, 0, 1, 0]),
        ({"dsa_indexer_topk_freq": 3, "dsa_indexer_skip_topk_offset": 1}, [1, 0, 0, 1, 0, 0]),
        ({"dsa_indexer_topk_freq": 3, "dsa_indexer_skip_topk_offset": 2}, [1, 1, 0, 0, 1, 0]),
        ({"dsa_indexer_layers": [1, 0, 0, 0, 1, 0]}, [1, 0, 0, 0, 1, 0]),
        ({"dsa_indexer_layers": [1, 0, 0, 0, 1, 0], "dsa_indexer_topk_freq": 2}, [1, 0, 0, 0, 1, 0]),
    ],
    ids=str,
)
def test_layers_that_choose(fields, chosen):
    shape = read(SMALL | FIELDS | {"num_layers": 6} | fields).shape
    assert [chooses(shape, number, False) for number in range(1, 7)] == chosen
    counted = [
        any(term.component == "indexer" for term in in_layer(FIELDS | {"num_layers": 6} | fields, layer=i)) for i in range(6)
    ]
    assert counted == list(map(bool, chosen))
    kept = [[cache.name for cache in layer] for layer in layer_caches(shape)]
    assert kept == [["latents", "indexer_keys"] if choice else ["latents"] for choice in chosen]


def test_a_list_of_layers_says_nothing_about_depths():
    shape = read(SMALL | FIELDS | {"dsa_indexer_layers": [0], "dsa_indexer_topk_freq": 2}).shape
    assert [chooses(shape, 1, in_mtp) for in_mtp in (False, True)] == [0, 1]


def test_the_main_heads_see_what_was_chosen():
    """On latents 9 wide beside 4 of RoPE; in MaxText's count in their own width."""
    seen = sum(min(position, 2) for position in range(1, TOKENS + 1))
    cores = {
        name: [t for t in in_layer(FIELDS, convention=name) if t.component == "core_attention"] for name in ("exact", "maxtext")
    }
    assert macs(cores["exact"], TOKENS) == seen * 4 * (13 + 9)
    assert macs(cores["maxtext"], TOKENS) == seen * 4 * (9 + 3)


@pytest.mark.parametrize("name", ["dsa_indexer_n_heads", "dsa_indexer_head_dim", "dsa_indexer_topk"])
@pytest.mark.parametrize(
    ("value", "what"), [(None, "is missing"), (0, "is 0"), (-1, "is -1"), (True, "is True"), (2.5, "is 2.5")]
)
def test_a_size_that_cannot_be_is_named(name, value, what):
    with pytest.raises(ConfigError) as error:
        compile_plan(SMALL | FIELDS | {name: value})
    assert str(error.value) == f"model.{name} {what}: experimental_attention_variant='dsa' needs a positive integer"


def test_frameworks_that_mask_say_so():
    said = {name: MIXERS["dsa"].executed(framework) for name, framework in FRAMEWORKS.items()}
    assert {name for name, sentence in said.items() if not sentence} == {"megatron"}
    (sentence,) = set(said.values()) - {""}
    assert sentence.startswith("sparse attention: its core is counted on the latents")
