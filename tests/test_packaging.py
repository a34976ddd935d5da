"""The wheel and the source archive hold what they should, and a wheel that is installed works far from the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(kind: str, source: Path, out: Path) -> Path:
    """What `pip install` asks of the package's own build system."""
    code = f"from setuptools.build_meta import build_{kind} as build; print(build({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(source archive of the committed and new files, wheel made from that archive)."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = listed.stdout.split("\n") if listed.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")]
    for name in names:
        if name and (ROOT / name).is_file() and not name.startswith((".venv/", "build/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    archive = build("sdist", source, folder)
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return archive, build("wheel", unpacked, folder)


def test_the_wheel_holds_every_module_recipe_and_asset(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "bridge").rglob("*.py")}
    recipes = {f"bridge/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assets = {
        str(path.relative_to(ROOT))
        for pattern in ("*.css", "*.js", "*.json", "py.typed")
        for path in (ROOT / "bridge").rglob(pattern)
    }
    assert held == modules | recipes | assets


def test_the_archive_can_be_worked_on(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
        "mkdocs.yml",
        "tests/test_packaging.py",
    } <= held


def test_an_installed_wheel_counts(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Without an extra: its two requirements alone, no torch, no repository."""
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(built[1])]
    subprocess.run(install, check=True, capture_output=True)
    requirements = ["omegaconf", "rich", "antlr4", "yaml", "_yaml", "pygments", "markdown_it", "mdurl", "attr", "attrs"]
    here = Path(sys.modules["pytest"].__file__).parents[1]
    for name in requirements:
        if (here / name).exists():
            (target / name).symlink_to(here / name)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    code = f"import sys; sys.path.insert(0, {str(target)!r}); from bridge.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-S", "-c", code, "flops", "llama3-8b", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["flops"] == 421645529382912  # the published shape at 8,192 tokens
