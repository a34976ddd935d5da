"""MLflow: an experiment's run on a server, in a database or in files.

Metrics are doubles there; facts are tags, which are strings, so their integers keep all digits.  MLflow cannot replace a row, so
a resumed run does not send steps that were sent before.
"""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bridge.metrics.trackers.background import BackgroundTracker
from bridge.metrics.trackers.plain import doubles, flat, plain
from bridge.metrics.trackers.secrets import without_login, without_secrets
from bridge.metrics.trackers.tracker import Metrics

#: The tag by which a resumed run is found.
RUN_ID_TAG = "bridge.run_id"

# Limits of a server: items per request, and characters of tags and parameters.
_AT_ONCE = 100
_LONGEST_TAG, _LONGEST_PARAMETER = 5000, 6000


class MlflowTracker(BackgroundTracker):
    """An MLflow run.

    Put a login in ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD`` (or ``MLFLOW_TRACKING_TOKEN``), not in the
    configuration.

    Args:
        experiment: name of the experiment, which is created if it does not exist.
        run_id: continues the run of this id, if the experiment has one.
        tracking_uri: ``https://...``, ``sqlite:///...``; None: ``MLFLOW_TRACKING_URI``, else MLflow's own default.
        name: name of the run.
        tags: tags of the run.
        config: the run's options, as MLflow's parameters; secrets are taken out.
    """

    service = "MLflow"

    def __init__(
        self,
        *,
        experiment: str,
        run_id: str,
        tracking_uri: str | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        config: Metrics | None = None,
    ) -> None:
        self._experiment, self._uri, self._name = experiment, tracking_uri or "", name
        self._tags = {RUN_ID_TAG: run_id, **(tags or {})}
        self._config = without_secrets(plain(config or {}))
        self._run = ""
        self._sent = -1
        super().__init__()

    def log(self, metrics: Metrics, step: int) -> None:
        numbers, now = {**doubles(metrics), "step": float(step)}, int(1e3 * time.time())
        self._put(lambda: self._send(numbers, step, now))

    def summary(self, facts: Metrics) -> None:
        tags = _texts(without_secrets(plain(facts)), _LONGEST_TAG)
        self._put(lambda: self._send_tags(tags))

    def how_to_look(self) -> list[str]:
        self._wait_until_opened()
        if not self._run:
            return []
        if self._uri.startswith("http"):
            return [f"MLflow: {without_login(self._uri)}/#/experiments/{self._experiment_id}/runs/{self._run}"]
        return [f"MLflow: mlflow ui --backend-store-uri {shlex.quote(without_login(self._uri))}"]

    # In the tracker's own thread.

    def _open(self) -> None:
        import mlflow
        from mlflow import entities

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # creating a database needs no message
        self._entities = entities
        self._uri = self._uri or mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient(tracking_uri=self._uri)
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        self._experiment_id = experiment
        known = self._client.search_runs([experiment], f"tags.`{RUN_ID_TAG}` = '{self._tags[RUN_ID_TAG]}'", max_results=1)
        if known:
            self._run = known[0].info.run_id
            self._sent = int(known[0].data.metrics.get("step", -1))
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(experiment, run_name=self._name, tags=self._tags).info.run_id
        parameters = [entities.Param(key, text) for key, text in _texts(self._config, _LONGEST_PARAMETER).items()]
        for some in _in_batches(parameters):
            self._client.log_batch(self._run, params=some)

    def _send(self, numbers: dict[str, float], step: int, now: int) -> None:
        if step <= self._sent:  # an earlier start of this run has sent it
            return
        self._sent = step
        metrics = [self._entities.Metric(key, number, now, step) for key, number in numbers.items()]
        for some in _in_batches(metrics):
            self._client.log_batch(self._run, metrics=some)

    def _send_tags(self, texts: dict[str, str]) -> None:
        for some in _in_batches([self._entities.RunTag(key, text) for key, text in texts.items()]):
            self._client.log_batch(self._run, tags=some)

    def _finish(self) -> None:
        self._client.set_terminated(self._run)


def _texts(options: Mapping[str, Any], longest: int) -> dict[str, str]:
    """Options by dotted name; one whose text is too long is left out rather than cut."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat(options)}
    return {key: text for key, text in texts.items() if len(text) <= longest}


def _in_batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
