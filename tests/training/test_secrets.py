"""What a run writes into its folder holds no secret of its configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("megatron.core")

from bridge.config import load_recipe
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
