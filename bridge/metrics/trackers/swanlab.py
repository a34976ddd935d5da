"""SwanLab: a run on this machine, or in its cloud.

In a recipe::

    logger:
      trackers:
        - _target_: bridge.metrics.trackers.swanlab.SwanLabTracker
          project: bridge

Put a login in ``SWANLAB_API_KEY`` (or use ``swanlab login``), not in the configuration.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from bridge.metrics.trackers.background import BackgroundTracker
from bridge.metrics.trackers.opening import Start
from bridge.metrics.trackers.plain import doubles, plain
from bridge.metrics.trackers.secrets import without_secrets
from bridge.metrics.trackers.tracker import Metrics


class SwanLabTracker(BackgroundTracker):
    """A SwanLab run; numbers are doubles there.

    Args:
        start: start of the run.
        project: name of the project.
        mode: ``online``, ``local``, ``offline`` or ``disabled``; None: online if an account is configured, else ``offline``.
        directory: where local files go; None: ``swanlog`` in the run's folder.
        workspace: workspace of a team.
    """

    service, package, extra = "SwanLab", "swanlab", "swanlab"

    def __init__(
        self,
        start: Start,
        project: str = "bridge",
        mode: str | None = None,
        directory: str | None = None,
        workspace: str | None = None,
    ) -> None:
        self._start, self._project, self._workspace = start, project, workspace
        self._mode = mode or ("online" if os.environ.get("SWANLAB_API_KEY") else "offline")
        self._directory = directory or os.path.join(str(start.options.dir), "swanlog")
        super().__init__()

    def log(self, metrics: Metrics, step: int) -> None:
        numbers = doubles(metrics)
        self._put(lambda: self._run.log(numbers, step=step))

    def summary(self, facts: Metrics) -> None:
        texts = without_secrets(plain(facts))
        self._put(lambda: self._run.config.update(texts))

    def how_to_look(self) -> list[str]:
        if self._mode == "local":
            return [f"SwanLab: swanlab watch {shlex.quote(self._directory)}"]
        runs = sorted(Path(self._directory).glob("run-*"))
        return [f"SwanLab: swanlab sync {shlex.quote(str(runs[-1]))}"] if runs and self._mode == "offline" else []

    # In the tracker's own thread.

    def _open(self) -> None:
        import swanlab

        self._swanlab: Any = swanlab
        os.makedirs(self._directory, exist_ok=True)
        self._run = swanlab.init(
            project=self._project,
            workspace=self._workspace,
            name=self._start.name,
            config=without_secrets(plain(self._start.config or {})),
            log_dir=self._directory,
            mode=self._mode,
            **({"id": self._start.run_id, "resume": "allow"} if self._mode == "online" else {}),
        )

    def _finish(self) -> None:
        self._swanlab.finish()
