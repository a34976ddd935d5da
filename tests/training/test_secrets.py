"""What a run writes into its folder holds no secret of its configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("megatron.core")

from bridge.config import load_recipe
from bridge.config.loader import as_written
from bridge.training.run import Run


def test_no_file_of_a_run_holds_a_secret(tmp_path: Path) -> None:
    cfg = load_recipe("tiny", [f"logger.dir={tmp_path}", "logger.wandb_mode=offline"])
    cfg.logger.mlflow_tracking_uri = "https://me:pass-word@host"
    cfg.callbacks.append({"_target_": "mine.Callback", "api_key": "pass-word", "interval": 3})
    groups = SimpleNamespace(writes=True)
    state = SimpleNamespace(groups=groups, step=0, wandb_run_id=None)
    Run._open_trackers(SimpleNamespace(state=state, cfg=cfg, _say=print))  # type: ignore[arg-type]
    state.trackers.summary({"formula_inputs": {"hf_token": "pass-word", "num_layers": 4}})
    state.trackers.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.summary.json"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if b"pass-word" in path.read_bytes()] == []
    kept = load_recipe(tmp_path / "config.yaml", validate=False)
    assert kept.logger.mlflow_tracking_uri == "https://***@host"
    assert kept.callbacks[-1] == {"_target_": "mine.Callback", "api_key": "***", "interval": 3}
    assert kept.model == cfg.model


def test_what_a_recipe_takes_from_elsewhere_is_stored_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE_API_KEY", "planted-value")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"base: tiny\nlogger: {{dir: {tmp_path / 'run'}, wandb_project: x, wandb_mode: offline, "
        'wandb_tags: ["${oc.env:MINE_API_KEY}"]}\ntrain: {seed: 7}\n'
        + "callbacks:\n  - {_target_: mine.Slack, user: '${oc.env:MINE_API_KEY}', webhook: https://hooks.slack.com/services/T/planted-hook,"
        " headers: {Authorization: Bearer planted-bearer}, interval: '${train.seed}'}\n"
    )
    cfg = load_recipe(recipe, validate=False)
    assert (cfg.callbacks[0]["user"], cfg.callbacks[0]["interval"]) == ("planted-value", 7)
    groups = SimpleNamespace(writes=True)
    state = SimpleNamespace(groups=groups, step=0, wandb_run_id=None)
    Run._open_trackers(SimpleNamespace(state=state, cfg=cfg, _say=print))  # type: ignore[arg-type]
    state.trackers.close()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if b"planted" in path.read_bytes()] == []
    written = tmp_path / "run" / "config.yaml"
    assert written.stat().st_mode & 0o777 == 0o600
    assert "user: ${oc.env:MINE_API_KEY}" in written.read_text()
    kept = load_recipe(written, validate=False)
    assert kept.logger.wandb_tags == ["planted-value"]
    assert kept.callbacks[0]["webhook"] == "***"
    cfg.callbacks[0]["user"] = "set anew"
    assert as_written(cfg)["callbacks"][0]["user"] == "set anew"
