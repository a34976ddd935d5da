"""`bridge dashboard` as it is typed. Nothing here reaches W&B."""

import json
import sys

import pytest

from bridge.cli.main import main
from bridge.report.panels import SECTIONS


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def said(capsys, *arguments):
    code = main(["dashboard", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_dry_run_lists_the_panels(capsys, no_account):
    pytest.importorskip("wandb_workspaces")
    code, out, _ = said(capsys, "team/project", "--dry-run", "--name", "Mine")
    assert code == 0
    assert out.startswith("Mine (not saved)")
    assert [panel.title for section in SECTIONS for panel in section.panels if panel.title not in out] == []


def test_json_is_what_would_be_sent(capsys, no_account):
    pytest.importorskip("wandb_workspaces")
    from bridge.report import workspace

    code, out, _ = said(capsys, "team/project", "--json")
    assert code == 0
    assert json.loads(out) == workspace.spec(workspace.build("team", "project"))


@pytest.mark.parametrize("project", ["project", "a/b/c", "/b", "a/", "a/b?c", "https://wandb.ai/a/b"])
def test_other_projects_are_refused(capsys, project):
    code, _, err = said(capsys, project, "--dry-run")
    assert code == 2
    assert "ENTITY/PROJECT" in err


def test_without_an_account_nothing_is_saved(capsys, no_account):
    pytest.importorskip("wandb_workspaces")
    code, out, err = said(capsys, "team/project")
    assert (code, out) == (2, "")
    assert err == "bridge: error: saving a workspace needs a W&B account: `wandb login` or WANDB_API_KEY; --dry-run needs none\n"


def test_a_missing_package_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    code, _, err = said(capsys, "team/project", "--dry-run")
    assert code == 2
    assert "pip install wandb-workspaces" in err
