"""What a rank holds of a model: by hand, cut and ordered as megatron-core does it, and nothing lost between the ranks."""

from __future__ import annotations

import pytest

from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.flops.pipeline import PipelineLayout
from bridge.planning.layouts import Layout
from bridge.planning.shards import (
    BUFFERS,
    COLUMN,
    COLUMN_IF_LOCAL,
    ROW,
    WHOLE,
    ParameterShard,
    chunks,
    is_expert,
    leaf,
    terms_for,
    terms_of,
    unknown,
)

MODEL = {"num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 12, "num_attention_heads": 4, "num_query_groups": 2,
         "vocab_size": 11, "gated_linear_unit": True, "make_vocab_size_divisible_by": 1}  # fmt: skip
EXPERTS = {"num_moe_experts": 4, "moe_router_topk": 1, "moe_ffn_hidden_size": 6, "add_bias_linear": True}
TWO = Layout(devices=2, tensor_model_parallel_size=2)


def pipeline(stages: int, virtual: int | None = None) -> Layout:
    cut = PipelineLayout(pipeline_model_parallel_size=stages, virtual_pipeline_model_parallel_size=virtual)
    return Layout(devices=stages, pipeline=cut)


def held(fields: dict, layout: Layout, stage: int = 0, **options) -> list[list[tuple[str, int]]]:
    found = chunks(compile_plan(MODEL | fields), layout, stage, **options)
    return [[(shard.path, shard.numel) for shard in chunk] for chunk in found]


def layer(number: int, ranks: int = 1) -> list[tuple[str, int]]:
    """Of megatron-core's TransformerLayer, in the order of its ``named_parameters``."""
    sizes = {
        "input_layernorm": 8,
        "self_attention.linear_proj": 8 * 8 // ranks,
        "self_attention.linear_qkv": 8 * (4 + 2 * 2) * 2 // ranks,
        "pre_mlp_layernorm": 8,
        "mlp.linear_fc1": 8 * 2 * 12 // ranks,
        "mlp.linear_fc2": 12 * 8 // ranks,
    }
    return [(f"decoder.layers.{number}.{name}", size) for name, size in sizes.items()]


def ends(table: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    return [("embedding.word_embeddings", table)], [("decoder.final_layernorm", 8), ("output_layer", table)]


def test_one_rank_holds_all_in_the_order_of_its_modules():
    first, last = ends(11 * 8)
    assert held({}, Layout()) == [[*first, *layer(0), *layer(1), *last]]


def test_two_tensor_parallel_ranks_halve_matrices_and_neither_norms_nor_a_row_of_the_vocabulary():
    first, last = ends(12 * 8 // 2)  # 11 rows are filled up to a multiple of the ranks
    assert held({}, TWO) == [[*first, *layer(0, 2), *layer(1, 2), *last]]
    assert terms_for(compile_plan(MODEL), TWO)[0].k * terms_for(compile_plan(MODEL), TWO)[0].n == 96
    assert terms_for(compile_plan(MODEL), Layout())[0].k * terms_for(compile_plan(MODEL), Layout())[0].n == 88


def test_stages_and_their_chunks():
    deep = {"num_layers": 4}
    first, last = ends(11 * 8)
    assert held(deep, pipeline(2), 0) == [[*first, *layer(0), *layer(1)]]
    assert held(deep, pipeline(2), 1) == [[*layer(2), *layer(3), *last]]
    assert held(deep, pipeline(2, 2), 0) == [[*first, *layer(0)], layer(2)]
    assert held(deep, pipeline(2, 2), 1) == [layer(1), [*layer(3), *last]]


def test_a_table_that_two_stages_share_is_on_both_and_alone():
    tied = compile_plan(MODEL | {"share_embeddings_and_output_weights": True})
    (first,), (last,) = (chunks(tied, pipeline(2), stage) for stage in (0, 1))
    assert [shard for shard in (*first, *last) if shard.alone] == [
        ParameterShard("embedding.word_embeddings", 88, alone=True),
        ParameterShard("output_layer", 88, alone=True),
    ]
    (whole,) = chunks(tied, Layout(), 0)
    assert not any(shard.alone or shard.path == "output_layer" for shard in whole)
    assert not any(shard.alone for shard in chunks(compile_plan(MODEL), pipeline(2), 0)[0])


def test_a_depth_of_multi_token_prediction_has_the_table_on_its_stage():
    plan = compile_plan(MODEL | {"mtp_num_layers": 1})
    (first,), (last,) = (chunks(plan, pipeline(2), stage) for stage in (0, 1))
    tables = [(shard.path, shard.alone) for shard in (*first, *last) if "embedding" in shard.path or "output" in shard.path]
    assert tables == [("embedding.word_embeddings", True), ("embedding.word_embeddings", True), ("output_layer", False)]
    assert [shard.path for shard in last].index("decoder.final_layernorm") < min(
        number for number, shard in enumerate(last) if shard.path.startswith("mtp.")
    )


def test_biases_follow_their_layers():
    """Of a column the outputs are cut, and with them the bias; of a row the inputs, and the bias is whole."""
    (whole,), (half,) = (chunks(compile_plan(MODEL | {"add_bias_linear": True}), one, 0) for one in (Layout(), TWO))
    sizes = {shard.path.rpartition(".")[2]: shard.numel for shard in whole[1:-2] if shard.path.startswith("decoder.layers.0")}
    cut = {shard.path.rpartition(".")[2]: shard.numel for shard in half[1:-2] if shard.path.startswith("decoder.layers.0")}
    assert (sizes["linear_fc1"], cut["linear_fc1"]) == (24, 12)  # the last of a path is its bias
    assert (sizes["linear_proj"], cut["linear_proj"]) == (8, 8)
    assert (sizes["linear_fc2"], cut["linear_fc2"]) == (8, 8)


# ---- experts ---------------------------------------------------------------------------------------------------------


def experts_of(layout: Layout, **options) -> list[ParameterShard]:
    (found,) = chunks(compile_plan(MODEL | EXPERTS | {"num_layers": 1}), layout, 0, **options)
    return [shard for shard in found if ".experts." in shard.path]


def test_experts_are_spread_and_held_one_by_one_or_grouped():
    fc1, fc2 = 8 * 2 * 6, 6 * 8
    spread = Layout(devices=2, expert_model_parallel_size=2)
    local = experts_of(spread, local=True)
    assert [shard.numel for shard in local] == [fc1, 12, fc2, 8] * 2
    assert [shard.numel for shard in experts_of(spread)] == [fc1] * 2 + [12] * 2 + [fc2] * 2 + [8] * 2
    assert all(shard.expert for shard in local)
    alone = experts_of(Layout(), local=True)
    assert len(alone) == 16
    assert not any(shard.expert for shard in alone)  # all ranks hold all of them: their gradients are everybody's


def test_experts_are_cut_over_tensor_parallel_ranks_of_their_own():
    together = Layout(devices=2, tensor_model_parallel_size=2, expert_tensor_parallel_size=1)
    assert [shard.numel for shard in experts_of(together, local=True)][:4] == [96, 12, 48, 8]
    assert [shard.numel for shard in experts_of(TWO, local=True)][:4] == [48, 6, 24, 8]


def test_which_terms_are_experts():
    terms = terms_for(compile_plan(MODEL | EXPERTS | {"moe_shared_expert_intermediate_size": 4}), Layout())
    found = {term.path for term in terms if is_expert(term)}
    assert found == {f"decoder.layers.{number}.mlp.experts.linear_fc{which}" for number in (0, 1) for which in (1, 2)}
    assert any(".shared_experts." in term.path for term in terms)


# ---- adapters, and what trains ---------------------------------------------------------------------------------------


def test_of_an_adapter_the_matrix_is_cut_that_its_layer_cuts():
    lora = {"model": MODEL, "peft": {"kind": "lora", "dim": 3, "target_modules": ["linear_qkv", "linear_proj"]}}
    (whole,), (half,) = (chunks(compile_plan(lora), one, 0) for one in (Layout(), TWO))
    sizes, cut = ({s.path: s.numel for s in chunk if ".0." in s.path and "adapter" in s.path} for chunk in (whole, half))
    inside = "decoder.layers.0.self_attention.linear_{}.adapter.linear_{}"
    assert sizes == {inside.format("qkv", "in"): 24, inside.format("qkv", "out"): 48, inside.format("proj", "in"): 24,
                     inside.format("proj", "out"): 24}  # fmt: skip
    assert cut == {inside.format("qkv", "in"): 24, inside.format("qkv", "out"): 24, inside.format("proj", "in"): 12,
                   inside.format("proj", "out"): 24}  # fmt: skip
    assert {shard.path for shard in whole if shard.trains} == {s.path for s in whole if "adapter" in s.path}
    assert leaf(next(t for t in terms_for(compile_plan(lora), TWO) if t.path == inside.format("proj", "in"))) == "linear_proj"


def test_frozen_weights_of_qlora_are_in_four_bits():
    qlora = {"model": MODEL, "peft": {"kind": "qlora", "dim": 3, "target_modules": ["linear_qkv"]}}
    (found,) = chunks(compile_plan(qlora), Layout(), 0)
    assert {leaf_of(shard) for shard in found if shard.four_bits} == {"linear_proj", "linear_qkv", "linear_fc1", "linear_fc2"}
    assert not any(shard.four_bits for shard in found if "adapter" in shard.path or shard.trains)


def leaf_of(shard: ParameterShard) -> str:
    return shard.path.rpartition(".")[2]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_each_name_is_cut_in_one_way():
    assert not COLUMN.keys() & ROW.keys()
    assert not WHOLE.keys() & (COLUMN.keys() | ROW.keys())
    assert COLUMN_IF_LOCAL.keys() <= WHOLE.keys()
    assert not BUFFERS.keys() & {*COLUMN, *ROW, *WHOLE}


def test_down_projections_are_whole_in_transformer_engine_alone():
    latent = {"multi_latent_attention": True, "q_lora_rank": 6, "kv_lora_rank": 4, "qk_head_dim": 4, "v_head_dim": 4,
              "qk_pos_emb_head_dim": 2, "num_query_groups": None}  # fmt: skip
    fused, local = (dict(held(latent, TWO, local=which)[0]) for which in (False, True))
    down = "decoder.layers.0.self_attention.linear_{}_down_proj"
    assert (fused[down.format("q")], local[down.format("q")]) == (48, 24)
    assert (fused[down.format("kv")], local[down.format("kv")]) == (48, 24)


def test_a_layer_whose_cut_is_unknown_is_named_and_whole():
    plan = compile_plan(load_recipe("qwen2.5-vl-7b", validate=False))
    assert unknown(terms_for(plan, Layout()), Layout()) == ()  # nothing is cut
    assert unknown(terms_for(compile_plan(MODEL | EXPERTS), TWO), TWO) == ()
    strange = [term.changed(path="decoder.layers.0.mixer.whirl") for term in terms_of(compile_plan(MODEL), TWO, 0)[0][:2]]
    assert unknown(strange, TWO) == ("whirl: its tensor-parallel sharding is unknown; it is treated as unsharded",)


@pytest.mark.parametrize("name", ["llama3-8b", "qwen3-30b-a3b", "nemotron-h-8b", "deepseek-v3", "gemma3-12b"])
def test_over_all_ranks_nothing_is_lost(name):
    """Eight stages' worth of parameters are the model's own, with the copy of a shared table."""
    plan = compile_plan(load_recipe(name, validate=False))
    alone = sum(shard.numel for shard in chunks(plan, Layout(), 0)[0])
    layers = 1 + max(term.place for term in plan.terms if isinstance(term.place, int))
    stages = next(number for number in range(2, layers + 1) if layers % number == 0)
    terms = terms_for(plan, Layout())
    assert alone == sum(term.parameters for term in terms if leaf(term) not in BUFFERS)
    table = next(term.k * term.n for term in terms if leaf(term) == "word_embeddings")
    shape = plan.model.shape
    again = table * (bool(shape.share_embeddings_and_output_weights) + bool(shape.mtp_num_layers))
    every = [shard.numel for stage in range(stages) for shard in chunks(plan, pipeline(stages), stage)[0]]
    assert sum(every) == alone + again
