"""TensorBoard: one event file a start, written record by record.

Values are stored as doubles, not as the usual 32-bit floats, which would keep 7 of the 16 or more digits of
``throughput/total_flops``.  Each tag carries its unit and meaning as TensorBoard's description.  Facts are texts, so their
integers keep all digits.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import socket
import time
from typing import Any, Optional

from bridge.metrics.keys import find_key
from bridge.metrics.trackers.background import BackgroundTracker
from bridge.metrics.trackers.plain import doubles, plain, without_secrets
from bridge.metrics.trackers.tracker import Metrics

_starts = itertools.count()


class TensorBoardTracker(BackgroundTracker):
    """Event files in a folder.

    Args:
        directory: the folder; missing ones are made.
        step: the step training starts after. TensorBoard forgets what older files of the folder say of later steps: they
            are trained again, or (0) by another run.
        config: the run's options, shown as a text; secrets are taken out.
    """

    service = "TensorBoard"

    def __init__(self, directory: str, *, step: int = 0, config: Optional[Metrics] = None) -> None:
        self._directory = directory
        self._step = step
        self._config = without_secrets(plain(config or {}))
        self._described: set[str] = set()
        os.makedirs(directory, exist_ok=True)
        super().__init__()

    def log(self, metrics: Metrics, step: int) -> None:
        now = time.time()
        self._put(lambda: self._write_scalars(doubles(metrics), step, now))

    def summary(self, facts: Metrics) -> None:
        texts = without_secrets(plain(facts))
        self._put(lambda: self._write_text("facts", texts))

    def how_to_look(self) -> list[str]:
        return [f"TensorBoard: tensorboard --logdir {shlex.quote(self._directory)}"]

    # In the tracker's own thread.

    def _open(self) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events, self._summaries, self._tensors = event_pb2, summary_pb2, tensor_pb2
        # Readers take the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() / 1e9:017.6f}.{socket.gethostname()}.{os.getpid()}.{next(_starts)}"
        self._file = open(os.path.join(self._directory, name), "xb", buffering=0)  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._write(step=0, file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=self._step + 1 if self._step else 0, session_log=start)
        if self._config:
            self._write_text("config", self._config)

    def _write_scalars(self, numbers: dict[str, float], step: int, now: float) -> None:
        values = []
        for tag, number in numbers.items():
            tensor = self._tensors.TensorProto(double_val=[number], dtype="DT_DOUBLE")
            values.append(self._summaries.Summary.Value(tag=tag, tensor=tensor, metadata=self._metadata(tag, "scalars")))
        self._write(now, step=step, summary=self._summaries.Summary(value=values))

    def _write_text(self, tag: str, content: Any) -> None:
        text = "    " + json.dumps(content, indent=2).replace("\n", "\n    ")  # as code: Markdown is rendered
        tensor = self._tensors.TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        value = self._summaries.Summary.Value(tag=tag, tensor=tensor, metadata=self._metadata(tag, "text"))
        self._write(step=self._step, summary=self._summaries.Summary(value=[value]))

    def _metadata(self, tag: str, plugin: str) -> Any:
        """What a tag is; readers take it from its first record."""
        if tag in self._described:
            return None
        self._described.add(tag)
        key = find_key(tag)
        about = f"{key.meaning} [{key.unit}]" if key else ""
        name = self._summaries.SummaryMetadata.PluginData(plugin_name=plugin)
        return self._summaries.SummaryMetadata(plugin_data=name, summary_description=about)

    def _write(self, wall_time: Optional[float] = None, **fields: Any) -> None:
        event = self._events.Event(wall_time=time.time() if wall_time is None else wall_time, **fields)
        self._records.write(event.SerializeToString())

    def _let_go(self) -> None:
        self._file.close()
