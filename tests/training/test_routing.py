"""Experts as they were routed: real megatron-core under FlopCounterMode equals the plan of what its routers counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("megatron.core")

import torch
import transformers
from launch import HERE, launch, torchrun
from oracle.counter import count
from routing_cases import CASES

from bridge.config import from_huggingface, load_recipe
from bridge.flops import compile_plan
from bridge.flops.routed import expert_count, expert_layers, routed
from bridge.metrics.place import Place
from bridge.training.routing import Routing, find_routing


def run(tensor: int, experts: int, pipeline: int = 1) -> dict[str, Any]:
    ranks = tensor * experts * pipeline
    result = launch(ranks, str(HERE / "routing_worker.py"), str(tensor), str(experts), str(pipeline))
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def one_rank() -> dict[str, Any]:
    return run(1, 1)


@pytest.fixture(scope="module")
def two_ranks() -> dict[str, Any]:
    return run(1, 2)


@pytest.fixture(scope="module")
def four_ranks() -> dict[str, Any]:
    return run(2, 2)


@pytest.fixture(scope="module")
def two_ranks_as_stages() -> dict[str, Any]:
    return run(1, 1, 2)


@pytest.fixture(scope="module")
def four_ranks_as_stages() -> dict[str, Any]:
    return run(1, 2, 2)


def check(name: str, found: dict[str, Any], *, staged: bool = False) -> None:
    """``staged``: forward and backward passes of a pipeline run in one another, and are counted together."""
    case, options = found[name], CASES[name]
    assert "error" not in case, case
    assert case["found"]
    planned, ran = case["hardware"]
    assert planned == ran
    if case["rows"] == case["useful"] and not staged:
        planned, ran = case["forward"]
        assert planned == ran
    elif "recompute_granularity" not in options and not staged:  # padded rows run in all passes, and are no model FLOPs
        assert case["hardware"][1] - case["training"] == 3 * (case["forward"][1] - case["forward"][0])
    if "moe_expert_capacity_factor" not in options:
        assert case["requested"] == case["useful"] == case["rows"]
        assert case["training"] == case["nominal"]
    most, exact = case["bound"]
    assert case["rows"] == most if exact else case["rows"] <= most


@pytest.mark.parametrize("name", CASES)
def test_one_rank(name: str, one_rank: dict[str, Any]) -> None:
    check(name, one_rank)


@pytest.mark.all
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_of_experts(name: str, two_ranks: dict[str, Any]) -> None:
    check(name, two_ranks)


@pytest.mark.all
@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("allgather")])
def test_four_ranks_of_tensors_and_experts(name: str, four_ranks: dict[str, Any]) -> None:
    check(name, four_ranks)


@pytest.mark.all
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_as_stages(name: str, two_ranks_as_stages: dict[str, Any]) -> None:
    check(name, two_ranks_as_stages, staged=True)


@pytest.mark.all
@pytest.mark.parametrize("name", CASES)
def test_four_ranks_as_stages_of_experts(name: str, four_ranks_as_stages: dict[str, Any]) -> None:
    check(name, four_ranks_as_stages, staged=True)


def test_by_hand(one_rank: dict[str, Any]) -> None:
    """Two layers, two micro-batches of 64 tokens and two experts each; an expert takes 24 rows, or 64 where it is filled up."""
    assert one_rank["dropless"]["requested"] == 2 * 2 * 64 * 2
    assert one_rank["skew drop"]["useful"] == 2 * 2 * 2 * 24
    assert one_rank["skew drop"]["loads"] == [96, 96, 0, 0]
    row = 6 * 32 * 24  # three matmuls of 32 x 24, two operations each
    dropped = one_rank["skew drop"]["requested"] - one_rank["skew drop"]["useful"]
    assert one_rank["skew drop"]["nominal"] - one_rank["skew drop"]["training"] == 3 * row * dropped
    assert one_rank["pad more"]["rows"] == 2 * 2 * 4 * 64
    # Where the other weights are exactly zero, what was asked for is not what has a weight.
    assert one_rank["skew pad"]["useful"] == 2 * 2 * 2 * 16


@pytest.mark.all
def test_the_callback_prices_what_was_routed(tmp_path: Path) -> None:
    """Two ranks, each with two of four experts, that take one row a micro-batch: of 2 x 4 x 256 assignments 4 are left."""
    file = tmp_path / "metrics.jsonl"
    options = ["model.moe_expert_capacity_factor=0.001", "data.batching=fixed", "train.train_iters=3", "logger.log_interval=1",
               "optimizer.lr=1e-12", f"logger.metrics_file={file}"]  # fmt: skip
    result = torchrun(2, "-m", "bridge", "train", "tiny_moe", *options)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    config = load_recipe("tiny_moe", [*options[:-1]])
    plan = compile_plan(config)
    layers, micro_batches, steps = 3, 4, 3
    requested, useful = layers * micro_batches * 4 * 256 * 2, layers * micro_batches * 4
    row = 3 * 6 * 128 * 176
    nominal = plan.flops([256] * 16)
    last = next(row for row in reversed(rows) if "throughput/total_flops" in row)
    assert last["throughput/total_flops"] == steps * (nominal - row * (requested - useful))
    assert last["throughput/dropped_tokens_fraction"] == 1 - useful / requested
    assert last["throughput/imbalance/experts"] == last["throughput/imbalance/expert_ranks"] == 1
    assert last["throughput/imbalance/experts/layer_2"] == 1
    ratio = last["throughput/tflops/device_nominal"] / last["throughput/tflops/device"]
    assert ratio == pytest.approx(nominal / (nominal - row * (requested - useful)))


# ---- transformers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_experts_of_transformers(checkpointing: bool | None) -> None:
    """Nothing is dropped: routing says how even the experts are loaded, and the plan stays as it is."""
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=2, num_experts=4,
        num_experts_per_tok=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.Qwen3MoeForCausalLM(config).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
    plan = compile_plan(from_huggingface(model), "executed")
    routing = find_routing([model], plan, Place())
    assert routing is not None
    assert (routing.found, expert_count(plan)) == ({0, 1}, 4)
    tokens = torch.randint(64, (2, 16))
    ran = count(lambda: model(input_ids=tokens, labels=tokens).loss.backward())
    requested, useful, rows = routing.take() or pytest.fail("nothing was counted")
    assert requested == int(useful.sum()) == int(rows.sum()) == 2 * 2 * 16 * 2
    vector = plan.measure([16, 16])
    assert plan.evaluate(vector, "hardware") == ran
    as_routed = routed(plan)
    known = dict(zip((s.name for s in plan.statistics), vector, strict=True))
    told = {f"assignments_of_routed[{layer}]": int(useful[layer].sum()) for layer in range(2)}
    assert as_routed.evaluate([{**known, **told}.get(s.name, 0) for s in as_routed.statistics], "hardware") == ran
    model.eval()(input_ids=tokens)
    assert routing.take() is None
    routing.close()


def test_a_model_without_routers_is_not_counted() -> None:
    moe = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64, "num_moe_experts": 4}
    plan = compile_plan(moe)
    assert list(expert_layers(plan)) == ["decoder.layers.0.mlp", "decoder.layers.1.mlp"]
    assert find_routing([torch.nn.Linear(2, 2)], plan, Place()) is None


def test_a_compiled_model_is_left_alone() -> None:
    plan = compile_plan({"num_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64, "num_moe_experts": 4})
    compiled = torch.nn.Sequential(torch.nn.Linear(2, 2))
    compiled[0].compile()
    assert find_routing([compiled], plan, Place()) is None
    assert find_routing([torch.compile(torch.nn.Linear(2, 2))], plan, Place()) is None


def test_a_hook_that_fails_says_so_later() -> None:
    class Router(torch.nn.Module):
        topk = 2
        routing = None

        def forward(self, x: Any) -> Any:
            return x, "no map"

    layer = torch.nn.Module()
    layer.mlp = torch.nn.Module()
    layer.mlp.router = Router()
    chunk = torch.nn.Module()
    chunk.decoder = torch.nn.Module()
    chunk.decoder.layers = torch.nn.ModuleList([layer])
    routing = Routing([chunk], {"decoder.layers.0.mlp": 0}, 4)
    layer.mlp.router(torch.zeros(1))
    with pytest.raises(AttributeError):
        routing.take()
    routing.close()
