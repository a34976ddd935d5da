"""Trackio: a run in a local database, or in a Hugging Face space.

In a recipe::

    logger:
      trackers:
        - _target_: bridge.metrics.trackers.trackio.TrackioTracker
          project: bridge

Put a token in ``HF_TOKEN``, not in the configuration.
"""

from __future__ import annotations

import shlex
from typing import Any

from bridge.metrics.trackers.background import BackgroundTracker
from bridge.metrics.trackers.opening import Start
from bridge.metrics.trackers.plain import plain
from bridge.metrics.trackers.secrets import without_secrets
from bridge.metrics.trackers.tracker import Metrics


class TrackioTracker(BackgroundTracker):
    """A Trackio run, continued under its name after a restart.

    Args:
        start: start of the run.
        project: name of the project.
        space_id: a space that shows the run; None: this machine only. ``TRACKIO_DIR`` is the folder of the database.
    """

    service, package, extra = "Trackio", "trackio", "trackio"

    def __init__(self, start: Start, project: str = "bridge", space_id: str | None = None) -> None:
        self._start, self._project, self._space = start, project, space_id
        super().__init__()

    def log(self, metrics: Metrics, step: int) -> None:
        row = plain(metrics)
        self._put(lambda: self._run.log(row, step=step))

    def summary(self, facts: Metrics) -> None:
        """Add facts to the configuration, because Trackio has no summary; it keeps them with the first row."""
        texts = without_secrets(plain(facts))
        self._put(lambda: self._run.config.update(texts))

    def how_to_look(self) -> list[str]:
        return [f"Trackio: trackio show --project {shlex.quote(self._project)}"]

    # In the tracker's own thread.

    def _open(self) -> None:
        import trackio

        self._run: Any = trackio.init(
            project=self._project,
            name=f"{self._start.name}-{self._start.run_id}",
            space_id=self._space,
            config=without_secrets(plain(self._start.config or {})),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def _finish(self) -> None:
        self._run.finish()
