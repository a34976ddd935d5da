"""What MLflow's own client reads of a run, of one that was resumed, and of a store that is not there."""

import logging

import pytest

pytest.importorskip("mlflow", reason="pip install mlflow-skinny sqlalchemy alembic")

from bridge.config.schema import LoggerConfig
from bridge.metrics.trackers import open_trackers

TOTAL = 2**70 + 1


@pytest.mark.slow
def test_read_back_and_resumed(tmp_path, caplog, monkeypatch):
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = LoggerConfig(
        metrics_file=None,
        wandb_project=None,
        mlflow_experiment="bridge",
        mlflow_tracking_uri=store,
        mlflow_tags={"team": "a"},
    )
    first = open_trackers(options, name="tiny", config={"model": {"num_layers": 2}, "logger": {"api_key": "k"}})
    first.summary({"parameters": {"total": TOTAL}, "device": "X"})
    for step in (10, 20, 30):
        first.log({"throughput/total_flops": TOTAL * step, "lm loss": 1 / step, "text": "none"}, step, commit=True)
    assert first.how_to_look() == [f"MLflow: mlflow ui --backend-store-uri {store}"]
    first.close()
    # Again from step 20 on: what was sent stays.
    second = open_trackers(options, name="tiny", step=20, run_id=first.run_id, config={"model": {"num_layers": 3}})
    for step in (30, 40):
        second.log({"lm loss": 2 / step}, step, commit=True)
    second.summary({"throughput/total_flops": 40 * TOTAL})
    second.close()

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("bridge")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert run.data.params == {"model.num_layers": "2", "logger.api_key": "***"}
    losses = client.get_metric_history(run.info.run_id, "lm loss")
    assert sorted((metric.step, metric.value) for metric in losses) == [(10, 1 / 10), (20, 1 / 20), (30, 1 / 30), (40, 2 / 40)]
    totals = client.get_metric_history(run.info.run_id, "throughput/total_flops")
    assert [metric.value for metric in totals] == [float(TOTAL * step) for step in (10, 20, 30)]
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert tags == {
        "bridge.run_id": first.run_id,
        "team": "a",
        "device": "X",
        "parameters.total": str(TOTAL),
        "throughput/total_flops": str(40 * TOTAL),
    }

    # A server that is not there: one warning, and training goes on.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    options.mlflow_tracking_uri = "http://user:secret@127.0.0.1:9"
    caplog.clear()
    broken = open_trackers(options)
    broken.log({"x": 1}, 1, commit=True)
    broken.close()
    warnings = [found.getMessage() for found in caplog.records if found.levelno >= logging.WARNING and "bridge" in found.name]
    assert len(warnings) == 1, warnings
    assert warnings[0].startswith("MlflowTracker stopped: ")
    assert "secret" not in warnings[0]
