"""Every reference integer of every published model, under both conventions."""

import pytest

from bridge.flops import compile_plan
from bridge.training.utils.flop_utils import num_floating_point_operations
from tests.flops.published import CASES, IDS, MODELS, full_config, reference


@pytest.mark.parametrize(("model", "case"), CASES, ids=IDS)
def test_megatron(model, case):
    config = model["config"] | {key: case[key] for key in ("seq_length", "tensor_model_parallel_size")}
    got = num_floating_point_operations(
        {"model": config},
        case["batch_size"],
        case.get("seqlen_sum"),
        case.get("seqlen_squared_sum"),
        case.get("num_vision_patches", 0),
    )
    assert got == reference(case["megatron"])


@pytest.mark.parametrize(("model", "case"), CASES, ids=IDS)
def test_exact(model, case):
    plan = compile_plan(full_config(model), "exact")
    assert plan.flops(case["segments"], case.get("patches_per_image", ())) == reference(case["exact"])
    assert plan.not_counted == ()


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if isinstance(model["parameters"]["total"], int)])
def test_parameters_of_models_with_an_exact_published_total(name):
    model = MODELS[name]
    config = full_config(model) | {"layernorm_placement": "sandwich" if name.startswith(("gemma2", "gemma3")) else "pre"}
    if model["parameters"]["note"] == "without_mtp":
        config["mtp_num_layers"] = None
    if name == "moonlight-16b-a3b":
        pytest.skip("the published total counts buffers of the checkpoint")
    assert compile_plan(config, "exact").parameters()["total"] == model["parameters"]["total"]
