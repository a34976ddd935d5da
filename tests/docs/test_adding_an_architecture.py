"""The page, pasted into a copy of the package: four files, and everything knows the new attention."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle.counter import count
from torch import Tensor, nn

from bridge.flops import elementwise, terms
from bridge.flops.conventions import EXECUTED
from bridge.flops.frameworks import TRANSFORMERS
from bridge.flops.plan import Plan
from bridge.flops.terms import CAUSAL
from bridge.flops.transforms import differentiate, everything

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-an-architecture.md").read_text()
BLOCKS = dict(re.findall(r"^```\w+ title=\"([^\"]+)\"\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
#: What asks about an architecture, one after the other in one process.
QUESTIONS = """
import contextlib, io, json
from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.flops import compile_plan
from bridge.planning.inference import InferencePlan
from bridge.planning.ledger import Ledger
from bridge.planning.provenance import explain
from bridge.report.colours import COLOURS, PALETTE

NAME = "linear-attention-example"
def command(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(list(words)) in (0, None), words
    return out.getvalue()

cfg = load_recipe(NAME)
lora = load_recipe(NAME, ["peft.dim=8", "peft.target_modules=[linear_qkv]"])
hybrid = load_recipe(NAME, ["model.hybrid_layer_pattern=LL*-", "model.num_layers=4"])
plan = compile_plan(cfg, "exact")
origins = [origin for origin in explain(cfg, "exact") if origin.row.name == "key_value"]
found = {
    "not_counted": plan.not_counted,
    "forward": plan.breakdown([100, 20], passes="forward")["linear_attention"],
    "training": plan.breakdown([100, 20])["linear_attention"],
    "hybrid": compile_plan(hybrid, "exact").breakdown([100])["linear_attention"],
    "adapters": compile_plan(lora, "exact").breakdown([100], passes="forward")["adapters"],
    "formula": [(origin.k, origin.n) for origin in origins],
    "stages": sum(plan.evaluate_stages(plan.measure([100]), 4)) == plan.flops([100]),
    "state_bytes": [InferencePlan(cfg).cache_bytes(n) for n in (1, 4096)],
    "step": InferencePlan(cfg).decode(4096) - InferencePlan(cfg).decode(96),
    "ledger": [entry.cost.exponentiations for entry in Ledger(cfg).entries([100]) if entry.name == "feature_map"],
    "colour": COLOURS["linear_attention"] == PALETTE["sky"],
    "explained": "linear_feature_dim" in command("flops", NAME, "--explain"),
    "priced": json.loads(command("inference", NAME, "--prompt", "64", "--generate", "4", "--json"))["not_counted"],
    "listed": "linear_attention" in command("ledger", NAME),
}
print(json.dumps(found))
"""


def files(tree: Path) -> dict[str, bytes]:
    found = (path for path in tree.rglob("*") if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc")
    return {str(path.relative_to(tree)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with the page's blocks in it; a block whose first line stands in its file goes there, any other is a new file."""
    copy = tmp_path_factory.mktemp("copy")
    unwanted = shutil.ignore_patterns("__pycache__")
    for part in ("bridge", "recipes", "tests/oracle"):
        shutil.copytree(ROOT / part, copy / part, ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", copy)
    before = files(copy)
    for name, text in BLOCKS.items():
        path = copy / name
        if path.exists():
            first, old = text.splitlines(keepends=True)[0], path.read_text()
            assert old.count(first) == 1, f"{name} has no line {first!r}"
            path.write_text(old.replace(first, text))
        elif name.endswith((".py", ".yaml")):
            path.write_text(text)
    after = files(copy)
    changed = sorted(name for name in after if before.get(name) != after[name])
    assert changed == [
        "bridge/flops/components/linear_attention.py",
        "bridge/flops/shapes.py",
        "recipes/models/linear-attention-example.yaml",
        "tests/oracle/test_linear_attention.py",
    ]
    return copy


def run(tree: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'tests'}", "OMP_NUM_THREADS": "1"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run([sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def found(tree: Path) -> dict[str, Any]:
    return json.loads(run(tree, "-c", QUESTIONS).splitlines()[-1])


#: Multiply-accumulates of a token in a layer, by hand: 16 heads, features of 32, values of 64.
QKV, STATE, PROJECTION = 1024 * 16 * (32 + 32 + 64), 16 * 32 * 64, 16 * 64 * 1024
LAYER = QKV + 2 * STATE + PROJECTION


def test_flops(found: dict[str, Any]) -> None:
    assert found["not_counted"] == []
    assert found["forward"] == 2 * 120 * 12 * LAYER
    assert found["training"] == 3 * found["forward"]
    assert found["hybrid"] == 6 * 100 * 2 * LAYER
    assert found["adapters"] == 2 * 100 * (12 * 8 * (1024 + 16 * 128) + 4 * 8 * (1024 + 3 * 1024))
    assert found["stages"]


def test_explain(found: dict[str, Any]) -> None:
    assert found["formula"] == [["linear_feature_dim", "(hidden_size // num_attention_heads)*num_attention_heads"]]
    assert found["explained"]


def test_inference(found: dict[str, Any]) -> None:
    key_value = 4 * 2 * 1024 * 2
    assert found["state_bytes"] == [12 * 4 * STATE + key_value, 12 * 4 * STATE + 4096 * key_value]
    # Only the four layers of ordinary attention see more as the text grows.
    assert found["step"] == 4 * 2 * 2 * 1024 * 4000
    assert found["priced"] == []


def test_ledger(found: dict[str, Any]) -> None:
    # One exponential a feature of queries and keys; it counts as ten operations.
    assert found["ledger"] == [10 * 12 * 2 * 16 * 32 * 100]
    assert found["listed"]
    assert found["colour"]


def test_attention_with_scores() -> None:
    """The terms on the page against the module that they describe: 4 heads of 6 channels on 2 groups, queries of rank 5."""
    names: dict[str, Any] = {**vars(terms), **vars(elementwise), "LINE": "attention"}
    exec(BLOCKS["scores"], names)
    found = differentiate(names["gated_attention"](24, 4, 2, 6, 5, CAUSAL), everything, TRANSFORMERS)
    plan = Plan(EXECUTED, found, (), everything, lambda how: found)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.norm, self.up = nn.Linear(24, 5, bias=False), nn.RMSNorm(5), nn.Linear(5, 24, bias=False)
            self.kv, self.gate, self.proj = (nn.Linear(24, 24, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            query = self.up(self.norm(self.down(x))).unflatten(-1, (4, 6)).transpose(1, 2)
            key, value = (y.unflatten(-1, (2, 6)).transpose(1, 2).repeat_interleave(2, 1) for y in self.kv(x).chunk(2, -1))
            outputs = (query @ key.transpose(-1, -2)).softmax(-1) @ value
            return self.proj(outputs.transpose(1, 2).flatten(2) * self.gate(x).sigmoid())

    attention, batch = Attention(), torch.randn(2, 7, 24)
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in attention.parameters())
    assert plan.flops([7, 7], passes="forward") == count(lambda: attention(batch))
    assert plan.flops([7, 7]) == count(lambda: attention(batch).sum().backward())


def test_oracle(tree: Path) -> None:
    assert "1 passed" in run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/oracle/test_linear_attention.py")


def test_the_script_of_the_page_runs(tree: Path) -> None:
    breakdown, cached = run(tree, "-c", BLOCKS["script"]).splitlines()
    assert "'linear_attention'" in breakdown
    assert float(cached) == 12 * 4 * STATE + 4096 * 4 * 2 * 1024 * 2
