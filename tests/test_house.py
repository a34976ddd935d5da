"""The one-way floors: imports go down only, and the counting floor needs nothing but the standard library."""

import ast
import subprocess
import sys
import tokenize
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "bridge.flops": 0,
    "bridge.hardware": 0,
    "bridge.text": 1,
    "bridge.planning": 1,
    "bridge.config": 1,
    "bridge.data": 1,
    "bridge.metrics": 2,
    "bridge.tracing": 2,
    "bridge.training.utils": 5,  # the public face stands above all that it shows, adapters too
    "bridge.training": 3,
    "bridge.report": 4,
    "bridge.explorer": 5,
    "bridge.integrations": 5,
    "bridge.cli": 6,
    "bridge.__main__": 6,
}


#: Old names that lead up to where their contents have moved, for one release.
MOVED = {
    f"bridge.flops.{name}"
    for name in ("inference", "kv_cache", "provenance", "byte_patches", "planning", "operations", "byte_latent", "model_shape")
}

#: Names everything lazily, from every floor.
FACE = "bridge.__init__"


def floor(module: str) -> int | None:
    return next((level for name, level in FLOORS.items() if module == name or module.startswith(name + ".")), None)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide their direction"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "bridge").rglob("*.py"))}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - MOVED - {FACE}))
def test_imports_go_down_only(module):
    own = floor(module.removesuffix(".__init__"))
    for imported in imports(MODULES[module]):
        other = floor(imported)
        if other is not None:
            assert own is not None, f"{module} stands on no floor"
            assert other <= own, f"{module} (floor {own}) imports {imported} (floor {other})"
        if imported.startswith("bridge.training.utils") and module != "bridge.training.utils.flop_utils":
            assert own == floor(imported), f"{module} imports the public face {imported}"
        if own == 0:
            assert imported.split(".")[0] in sys.stdlib_module_names | {"bridge"}, f"{module} imports {imported}"


def test_no_file_imports_itself_through_others():
    """Imports at the top of files make no circle."""
    known = {name.removesuffix(".__init__") for name in MODULES}
    graph = {}
    for name, path in MODULES.items():
        wanted = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                # A name is a module of the package, or stands in the package's own file.
                wanted |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in known else node.module
                           for alias in node.names}  # fmt: skip
            elif isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
        graph[name.removesuffix(".__init__")] = wanted & known
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_counting_and_planning_do_not_import_torch():
    modules = "bridge.flops, bridge.hardware, bridge.training.utils.flop_utils"
    code = f"import sys, {modules}; print(sorted({{'torch', 'numpy', 'megatron'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


#: Lines of code a package may have, without comments, docstrings and blank lines: growth is a decision.
BUDGET = {
    "bridge/flops": 5100,
    "bridge/planning": 3080,
    "bridge/config": 3800,
    "bridge/data": 1870,
    "bridge/metrics": 5340,
    "bridge/training": 4580,
    "bridge/tracing": 1370,
    "bridge/report": 1480,
    "bridge/explorer": 1870,
    "bridge/integrations": 1310,
    "bridge/cli": 2580,
}


def lines_of_code(path):
    source = path.read_text()
    prose = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    return len({n for token in tokens if token.type not in quiet for n in range(token.start[0], token.end[0] + 1)} - prose)


@pytest.mark.parametrize("package", BUDGET)
def test_packages_stay_within_their_lines(package):
    lines = sum(map(lines_of_code, (ROOT / package).rglob("*.py")))
    assert lines <= BUDGET[package], f"{package} has {lines} lines of code: shorten it, or raise its budget with a reason"


#: Packages of which every module has a test of its name at the mirrored path.
TESTED = ("bridge.flops.", "bridge.metrics.", "bridge.config.", "bridge.planning.")


def has_its_test(module: str) -> bool:
    *folders, name = module.split(".")[1:]
    return ROOT.joinpath("tests", *folders, f"test_{name}.py").is_file()


def test_every_module_has_a_test_of_its_name():
    modules = {name for name in MODULES.keys() - MOVED if name.startswith(TESTED) and not name.endswith(".__init__")}
    assert {name for name in modules if not has_its_test(name)} == set()


def test_no_two_classes_have_one_name():
    classes = [
        (node.name, module)
        for module, path in MODULES.items()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    ]
    times = Counter(name for name, _ in classes if not name.startswith("_"))
    assert [(name, module) for name, module in classes if times[name] > 1] == []
