"""The documentation site builds without a warning: every link, anchor, page and API name in it exists."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs-material is not installed: pip install '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "EDIT_URI": "https://example.com/edit/main/docs/"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "WARNING" in line) or done.stderr
    for page in ("index", "faq", "api"):
        assert (tmp_path / (f"{page}/index.html" if page != "index" else "index.html")).exists()
    assert 'href="https://example.com/edit/main/docs/faq.md"' in (tmp_path / "faq/index.html").read_text()
    api = (tmp_path / "api/index.html").read_text()
    assert all(name in api for name in ("num_floating_point_operations", "evaluate_stages", "ThroughputCallback"))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
