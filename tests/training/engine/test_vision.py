"""Vision-language models train: on two ranks in every layout alike, with parts frozen, broken off and continued."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Any

import pytest
import vision_cases as cases
from launch import HERE, launch

from bridge.config import load_recipe
from bridge.data.images import ImageData
from bridge.flops import compile_plan
from bridge.flops.shapes import ConfigError, VisionShape
from bridge.training.engine.vision_limits import check_places, check_vision
from bridge.training.errors import RunError

pytestmark = pytest.mark.all

pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All trainings, in one process group of two ranks."""
    folder = tmp_path_factory.mktemp("vision")
    found = launch(2, str(HERE / "vision_worker.py"), str(folder))
    assert found.returncode == 0, found.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


def brute_force(model: str, *overrides: str) -> int | Fraction:
    """The plan, sample by sample, over everything a training of this model looks at."""
    cfg = cases.config("unused", model, *overrides)
    plan, samples = compile_plan(cfg, "exact"), ImageData(cfg).training
    seen = (samples[number] for number in range(cases.STEPS * cases.BATCH))
    return sum(plan.flops([len(sample.segment[0])], [rows * columns for _, rows, columns in sample.grids]) for sample in seen)


@pytest.mark.slow
@pytest.mark.parametrize("model", cases.MODELS)
def test_the_loss_falls_and_the_total_is_that_of_the_data(model: str, results: dict[str, Any]) -> None:
    found = results[model]
    assert found["code"] == 0, found["console"]
    assert found["verified"] == ["parameters", []]
    assert all(found["moved"].values())
    losses = [found["rows"][str(step)][0] for step in range(1, cases.STEPS + 1)]
    assert losses[-1] < losses[0] - 0.1
    assert found["evaluations"]["4"] < losses[0]
    assert found["total_flops"] == brute_force(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.CONTINUED)
def test_it_goes_on_alike_on_every_layout(name: str, results: dict[str, Any]) -> None:
    model, layout = name.split("/")
    found, reference = results[name], results[model]
    assert found["code"] == 0, found["console"]
    assert found["verified"] == ["parameters", []]
    assert sorted(found["rows"]) == [str(step) for step in range(cases.FORK + 1, cases.STEPS + 1)]
    for step, row in found["rows"].items():
        if layout == "dp2":  # the same layout: a resumed run equals an unbroken one to the last bit
            assert row == reference["rows"][step]
        # Experts: which one a token goes to may hang on the last bit.
        assert row == pytest.approx(reference["rows"][step], rel=1e-2 if model == "experts" else 1e-5)
    assert found["total_flops"] == reference["total_flops"]
    assert found["total_tokens"] == reference["total_tokens"]


@pytest.mark.slow
def test_gradients_are_reduced_on_the_way_also_where_a_replica_sees_no_image(results: dict[str, Any]) -> None:
    found, reference = results["overlapped"], results["table"]
    assert found["code"] == 0, found["console"]
    for step, row in found["rows"].items():
        assert row == pytest.approx(reference["rows"][step], rel=1e-5)
    assert found["total_flops"] == reference["total_flops"]
    # Samples 2 i and 2 i + 1 are micro-batch i of the two replicas.
    samples = ImageData(cases.config("unused", "table")).training
    seen = [bool(samples[number].grids) for number in range(cases.STEPS * cases.BATCH)]
    steps = [[any(seen[step + rank : step + cases.BATCH : 2]) for rank in (0, 1)] for step in range(0, len(seen), cases.BATCH)]
    assert [False, True] in steps or [True, False] in steps


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.FROZEN)
def test_frozen_parts_stay_as_they_were_and_the_others_move(name: str, results: dict[str, Any]) -> None:
    switches, _, frozen = cases.FROZEN[name]
    found = results[f"frozen/{name}"]
    assert found["code"] == 0, found["console"]
    stays = {name for name, moved in found["moved"].items() if not moved}
    assert stays == {name for name in found["moved"] if name.startswith(tuple(f"{part}." for part in frozen))}
    assert found["total_flops"] == brute_force("deep", *(f"model.{switch}=true" for switch in switches))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model.recompute_granularity=full", "model.vision_config.deepstack_visual_indexes=[0]"], "recompute_granularity=full"),
        (["parallel.context_parallel_size=2"], "parallel.context_parallel_size=2"),
        (["parallel.virtual_pipeline_model_parallel_size=2"], "parallel.virtual_pipeline_model_parallel_size=2"),
        (["parallel.tensor_model_parallel_size=8"], "parallel.tensor_model_parallel_size=8"),
        (["model.mtp_num_layers=1"], "model.mtp_num_layers=1"),
        (["model.image_token_id=300"], "model.image_token_id=300"),
        (["model.vision_config.projector_type=mlp"], "model.vision_config.projector_type='mlp'"),
        (["model.vision_config.hidden_act=mish"], "model.vision_config.hidden_act='mish'"),
        (["model.vision_config.num_heads=5"], "model.vision_config.num_heads=5"),
        (["model.vision_config.num_position_embeddings=10"], "model.vision_config.num_position_embeddings=10"),
        (["model.vision_config.out_hidden_size=64"], "model.vision_config.out_hidden_size=64"),
        (["model.vision_config.deepstack_visual_indexes=[0,1]", "parallel.pipeline_model_parallel_size=2"], "first 2"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        check_vision(load_recipe("tiny_vl", overrides, validate=False))


@pytest.mark.parametrize(
    ("tokens", "grids"),
    [
        ([[257, 65]], [[1, 2, 4]]),  # a sample cut inside its image
        ([[257, 257, 65]], [[1, 2, 2]]),
        ([[257, 257]], []),
        ([[257, 257, 257]], [[1, 3, 4]]),  # three rows do not merge two by two
    ],
)
def test_images_and_their_places_must_match(tokens: list[list[int]], grids: list[list[int]]) -> None:
    torch = pytest.importorskip("torch")
    vision = VisionShape(depth=1, hidden_size=8)
    check_places(torch.tensor([[257, 257, 65]]), torch.tensor([[1, 2, 4]]), 257, vision)
    with pytest.raises(RunError, match="model.image_token_id=257"):
        check_places(torch.tensor(tokens), torch.tensor(grids).reshape(-1, 3), 257, vision)


def test_the_recipes_pass() -> None:
    for name in ("tiny_vl", "tiny_vl_frozen", "train_qwen3_vl_4b_frozen_tower", "qwen2.5-vl-7b"):
        check_vision(load_recipe(name, ["model.image_token_id=151655"] if "qwen" in name else [], validate=False))
