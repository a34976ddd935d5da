"""What stands on which pipeline stage: megatron-core's own functions are asked, configuration by configuration."""

from __future__ import annotations

from itertools import product
from random import Random
from typing import Any

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.flops.pipeline import PipelineLayout
from bridge.flops.reading import read_layout

FIRST, LAST = "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"
EMBEDDING, LOSS = "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split"
PP, VPP, LIST = "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size", "pipeline_model_parallel_layout"


# ---- megatron-core ---------------------------------------------------------------------------------------------------


class Asked:
    """A TransformerConfig of megatron-core's, and what its functions build on each stage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any):
        pytest.importorskip("megatron.core")
        import torch
        from megatron.core import parallel_state
        from megatron.core.transformer.transformer_config import TransformerConfig

        self.state, self.patch = parallel_state, monkeypatch
        self.config = TransformerConfig(
            hidden_size=8, num_attention_heads=1, use_cpu_initialization=True, pipeline_dtype=torch.float32, **options
        )

    def placed(self) -> tuple[tuple[int, ...], set[int]]:
        """The stage of every decoder layer, and the stages with multi-token prediction."""
        from megatron.core.transformer.multi_token_prediction import get_mtp_num_layers_to_build
        from megatron.core.transformer.transformer_block import get_num_layers_to_build
        from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

        config, chunks = self.config, self.config.virtual_pipeline_model_parallel_size
        stage_of: dict[int, int] = {}
        depths: set[int] = set()
        self.patch.setattr(self.state, "_MPU_PIPELINE_MODEL_PARALLEL_WORLD_SIZE", config.pipeline_model_parallel_size)
        self.patch.setattr(self.state, "_VIRTUAL_PIPELINE_MODEL_PARALLEL_WORLD_SIZE", chunks)
        for stage, chunk in product(range(config.pipeline_model_parallel_size), range(chunks or 1)):
            self.patch.setattr(self.state, "_MPU_PIPELINE_MODEL_PARALLEL_RANK", stage)
            number = chunk if chunks else None
            count = get_num_layers_to_build(config, vp_stage=number, pp_rank=stage)
            offset = get_transformer_layer_offset(config, vp_stage=number, pp_rank=stage)
            for layer in range(offset, offset + count):
                assert stage_of.setdefault(layer, stage) == stage
            if get_mtp_num_layers_to_build(config, vp_stage=number, pp_rank=stage):
                depths.add(stage)
        assert sorted(stage_of) == list(range(config.num_layers))
        return tuple(stage_of[layer] for layer in range(config.num_layers)), depths


def splits(random: Random) -> dict[str, Any]:
    """An even or uneven split, possible or not."""
    stages = random.choice([2, 2, 3, 4, 5])
    options: dict[str, Any] = {PP: stages, VPP: random.choice([None, None, 2, 3]), "num_layers": random.randint(stages, 24)}
    kind = random.choice(["even", "uneven", "account"])
    if kind == "uneven":
        options |= {name: random.choice([None, *range(1, 7)]) for name in (FIRST, LAST)}
    if kind == "account":
        options |= {name: random.random() < 0.6 for name in (EMBEDDING, LOSS)}
    return options


def test_splits_are_megatron_cores(monkeypatch):
    """Where megatron-core builds, the same layers on the same stages; where it refuses, a sentence."""
    random, built, refused = Random(11), 0, 0
    for _ in range(600):
        options = splits(random)
        layout = PipelineLayout(**{name: value for name, value in options.items() if name != "num_layers"})
        try:
            expected, _ = Asked(monkeypatch, **options).placed()
        except (AssertionError, ValueError):
            with pytest.raises(ConfigError):
                layout.place(options["num_layers"])
            refused += 1
            continue
        assert layout.place(options["num_layers"]).layers == expected, options
        built += 1
    assert min(built, refused) > 100  # of both enough


def layouts(random: Random) -> tuple[int, int, str | list[list[str]]]:
    """Stages, depths, and a layout over them: a string with repetitions, or lists of names."""
    stages, chunks, depths = random.choice([2, 3, 4]), random.choice([1, 1, 2, 3]), random.choice([0, 0, 1, 2])
    held = ["t" * random.randint(0, 4) for _ in range(stages * chunks)]
    held[0] = "E" + held[0]
    if depths:
        place = random.choice(range(stages * (chunks - 1) + 1, stages * chunks))
        held = [*held[:place], held[place] + "m" * depths, *("" for _ in held[place + 1 :])]
    held[-1] += "L"
    if random.random() < 0.3:
        names = {"E": "embedding", "t": "decoder", "m": "mtp", "L": "loss"}
        return stages, depths, [[names[symbol] for symbol in chunk] for chunk in held]
    written = [chunk.replace("ttt", random.choice(["t*3", "tt,t", "(t)*3"])) for chunk in held]
    text = "|".join(written)
    return stages, depths, text.replace("|tt|tt|", random.choice(["(|tt)*2|", "|(tt|)*2"]))


def test_layouts_are_megatron_cores(monkeypatch):
    random = Random(12)
    for _ in range(150):
        stages, depths, layout = layouts(random)
        layers = layout.count("t") if isinstance(layout, str) else sum(chunk.count("decoder") for chunk in layout)
        if isinstance(layout, str):
            from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

            parsed = PipelineParallelLayerLayout.parse_str_to_list(layout)
            layers = sum(part.name == "decoder" for chunk in parsed for part in chunk)
        if not layers:
            continue
        asked = Asked(monkeypatch, num_layers=layers, mtp_num_layers=depths or None, **{PP: stages, LIST: layout})
        expected, with_depths = asked.placed()
        # What was written down, and megatron-core's own object made of it, are one layout.
        for given in (layout, asked.config.pipeline_model_parallel_layout):
            placement = PipelineLayout(**{PP: stages, LIST: given}).place(layers, depths)
            assert placement.layers == expected, layout
            assert {placement.mtp} == (with_depths or {placement.loss}), layout
            assert (placement.embedding, placement.loss) == (0, stages - 1)
        assert read_layout(asked.config).place(layers, depths).layers == expected


def test_segments_of_hybrid_patterns_go_around_the_stages():
    """As megatron-core selects them: segment = chunk x stages + stage."""

    def layers(*segments: int, **options: int) -> tuple[int, ...]:
        return PipelineLayout(**options, segments=segments).place(sum(segments)).layers

    assert layers(1, 7, **{PP: 2}) == (0, 1, 1, 1, 1, 1, 1, 1)
    assert layers(1, 2, 1, 3, **{PP: 2}) == layers(1, 2, 1, 3, **{PP: 2, VPP: 2}) == (0, 1, 1, 0, 1, 1, 1)
    assert layers(1, 2, **{PP: 1}) == (0, 0, 0)
    assert layers(0, 4, 0, **{PP: 3}) == (1, 1, 1, 1)
    # A pattern without | is cut like any model.
    assert layers(3, **{PP: 2, FIRST: 1}) == (0, 1, 1)


def test_hybrid_splits_are_megatron_cores(monkeypatch):
    """Uneven splits of a pattern, by the method that megatron-core's hybrid stack uses."""
    block = pytest.importorskip("megatron.core.ssm.mamba_block")
    from types import SimpleNamespace

    for layers, stages, first, last in product((6, 9, 12), (2, 3, 4), (None, 1, 2, 3), (None, 1, 3)):
        options = {FIRST: first, LAST: last}
        try:
            expected, _ = Asked(monkeypatch, num_layers=layers, **{PP: stages}, **options).placed()
        except (AssertionError, ValueError):
            continue
        config = SimpleNamespace(num_layers=layers, virtual_pipeline_model_parallel_size=None, **options)
        for stage in range(stages):
            group = SimpleNamespace(rank=lambda stage=stage: stage, size=lambda stages=stages: stages)
            stack = SimpleNamespace(config=config, pp_group=group)
            offset, chosen = block.MambaStack._select_layers_for_pipeline_parallel(stack, list(range(layers)))
            assert (
                chosen == [layer for layer, at in enumerate(expected) if at == stage] == list(range(offset, offset + len(chosen)))
            )
        assert PipelineLayout(**{PP: stages}, **options, segments=(layers,)).place(layers).layers == expected


# ---- sentences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "place", "message"),
    [
        ({PP: 3}, (8,), "8 layers do not split evenly over pipeline_model_parallel_size=3 stages"),
        ({PP: 2, VPP: 3}, (8,), "virtual_pipeline_model_parallel_size=3 chunks; set"),
        ({PP: 4, EMBEDDING: True}, (8,), "with account_for_embedding_in_pipeline_split=True"),
        ({PP: 2, FIRST: 9}, (8,), "with num_layers_in_first_pipeline_stage=9"),
        ({PP: 2, FIRST: 0}, (8,), "num_layers_in_first_pipeline_stage=0 must be a positive integer"),
        ({PP: 2.0}, (8,), "pipeline_model_parallel_size=2.0 must be a positive integer"),
        ({PP: 2, FIRST: 2, LOSS: True}, (8,), "account_for_loss_in_pipeline_split=True: which uneven stages decide"),
        ({PP: 2, LIST: "Et|tL", FIRST: 1}, (2,), "num_layers_in_first_pipeline_stage=1: which the layout decides"),
        ({PP: 2, LAST: 1, "segments": (1, 1)}, (2,), "which the | of the hybrid pattern decide; leave it unset"),
        (
            {PP: 2, "segments": (1, 1, 1)},
            (3,),
            "the hybrid pattern has 3 chunks, which is not a multiple of",
        ),
        ({PP: 2, VPP: 3, LIST: "E|t|t|L"}, (2,), "has 2 chunks per stage; leave it unset"),
        ({PP: 2, LIST: "Et|tL"}, (3,), "has 2 times decoder, but the model has 3: make them agree"),
        ({PP: 2, LIST: "Et|tL"}, (2, 1), "has 0 times mtp, but the model has 1"),
        ({PP: 2, LIST: "tE|tL"}, (2,), "must have embedding, decoder, mtp, loss in this order"),
        ({PP: 3, LIST: "Et|m|mL"}, (1, 2), "must have all mtp in one chunk"),
        ({PP: 2, LIST: "Ex|tL"}, (2,), "pipeline_model_parallel_layout='Ex|tL' has 'x'"),
        ({PP: 2, LIST: "E(t|(t)*2L"}, (2,), "known are E t m L, |, (...)*n and x*n"),
        ({PP: 2, LIST: [["embedding", "layer"], ["loss"]]}, (1,), "has 'layer'; known are embedding, decoder, mtp, loss"),
        ({PP: 2, LIST: 7}, (1,), "has '7'; known are E t m L"),
        ({PP: 2, LIST: "Et*99999999999999999999|L"}, (1,), "repeats 't' 999999999999 times: a model has at most 100,000 parts"),
        ({PP: 2, LIST: "E" + "(tt|)*40000" * 3}, (1,), "repeats 'tt|' 40000 times"),
    ],
)
def test_what_cannot_be_placed_is_one_sentence(options, place, message):
    with pytest.raises(ConfigError) as caught:
        PipelineLayout(**options).place(*place)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- what a plan makes of it -----------------------------------------------------------------------------------------

#: Width 4, MLP 8, vocabulary 10, one head: multiply-accumulates of one sequence of 7 tokens.
SMALL = {"num_layers": 4, "hidden_size": 4, "ffn_hidden_size": 8, "num_attention_heads": 1, "vocab_size": 10}
LAYER = 7 * (4 * 12 + 16) + 2 * 28 * 4 + 7 * 64
LOGITS, PROJECTION = 7 * 40, 7 * 2 * 16


def stages(model: dict[str, Any], **options: Any) -> list[Any]:
    """Forward multiply-accumulates of the stages."""
    plan = compile_plan(model, "exact")
    return [flops // 2 for flops in plan.evaluate_stages(plan.measure([7]), PipelineLayout(**options), passes="forward")]


def test_a_plan_is_priced_where_it_stands():
    assert stages(SMALL, **{PP: 2}) == [2 * LAYER, 2 * LAYER + LOGITS]
    assert stages(SMALL, **{PP: 2, EMBEDDING: True, LOSS: True}) == [2 * LAYER, 2 * LAYER + LOGITS]
    assert stages(SMALL, **{PP: 5, EMBEDDING: True}) == [0, LAYER, LAYER, LAYER, LAYER + LOGITS]
    assert stages(SMALL, **{PP: 5, LOSS: True}) == [LAYER, LAYER, LAYER, LAYER, LOGITS]
    assert stages(SMALL, **{PP: 3, FIRST: 1, LAST: 1}) == [LAYER, 2 * LAYER, LAYER + LOGITS]
    assert stages(SMALL, **{PP: 3, LIST: "E|t*4|L"}) == [0, 4 * LAYER, LOGITS]
    assert stages(SMALL, **{PP: 2, LIST: "Et|tt|t|L"}) == [2 * LAYER, 2 * LAYER + LOGITS]


def test_depths_stand_where_the_layout_has_them_and_their_output_layers_with_the_loss():
    model = SMALL | {"mtp_num_layers": 2}
    depths = 2 * (LAYER + PROJECTION)
    assert stages(model, **{PP: 2}) == [2 * LAYER, 2 * LAYER + depths + 3 * LOGITS]
    assert stages(model, **{PP: 4, LIST: "Ett|tt|mm|L"}) == [2 * LAYER, 2 * LAYER, depths, 3 * LOGITS]


def test_uneven_stages_under_megatron_lms_names():
    """Eight layers on four stages, one on the first and one on the last: the work of each, as a hand counts it."""
    args = {
        "num_layers": 8, "hidden_size": 1024, "num_attention_heads": 16, "num_query_groups": 4, "kv_channels": 64,
        "ffn_hidden_size": 2816, "swiglu": True, "padded_vocab_size": 32000, "group_query_attention": True,
        "pipeline_model_parallel_size": 4,
        "decoder_first_pipeline_num_layers": 1, "decoder_last_pipeline_num_layers": 1,
    }  # fmt: skip
    plan = compile_plan(args, "megatron")
    layer = 6 * (2048 * (1024 * 1536 + 1024 * 1024 + 3 * 1024 * 2816) + 2048**2 * 1024)
    expected = [layer, 3 * layer, 3 * layer, layer + 6 * 2048 * 1024 * 32000]
    assert expected == [164282499072, 492847497216, 492847497216, 566935683072]
    vector = plan.measure([2048])
    assert plan.evaluate_stages(vector) == plan.evaluate_stages(vector, 4) == expected
    # Other options than the configuration's are other stages.
    assert plan.evaluate_stages(vector, 4, num_layers_in_last_pipeline_stage=2) == [
        2 * layer,
        2 * layer,
        2 * layer,
        expected[3] + layer,
    ]


def test_pipes_of_a_hybrid_pattern_are_stages():
    model = {
        "hidden_size": 1024, "num_attention_heads": 16, "num_query_groups": 4, "kv_channels": 64, "ffn_hidden_size": 2816,
        "gated_linear_unit": True, "vocab_size": 32000, "num_layers": 8, "mamba_num_heads": 32, "mamba_head_dim": 64,
        "hybrid_layer_pattern": "M|*-M-M*-",
    }  # fmt: skip
    plan = compile_plan(model, "megatron")
    mamba = 2048 * 3 * (2 * 1024 * (4096 + 2048 + 32) + 7 * 2048 * 128 + 2 * 2048 * 1024)
    assert mamba == 114756157440
    vector = plan.measure([2048])
    assert plan.evaluate_stages(vector, 2) == [mamba, plan.evaluate(vector) - mamba] == [114756157440, 1067030937600]


def test_stages_add_up_whatever_the_passes_and_are_compiled_once():
    plan = compile_plan(SMALL | {"recompute_granularity": "full", "recompute_method": "uniform"}, "exact")
    layout = PipelineLayout(**{PP: 2})
    for passes in ("forward", "training", "hardware"):
        vector = plan.measure([5, 9])
        assert sum(plan.evaluate_stages(vector, layout, passes=passes)) == plan.evaluate(vector, passes)
    assert plan.stage_coefficients(layout) is plan.stage_coefficients(PipelineLayout(**{PP: 2, LIST: ""}))
