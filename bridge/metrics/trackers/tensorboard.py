"""TensorBoard: one event file per start, written record by record.

TensorBoard's charts show 32-bit floats (its default reader shows no others), which keep 7 digits.  Integers that these cannot
hold are also written with all digits in a text of the same step, ``integers``; the facts of the run are a text too.  Each tag has
its unit and meaning as its description.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import socket
import time
from typing import Any

from bridge.metrics.keys import find_key
from bridge.metrics.trackers.background import BackgroundTracker
from bridge.metrics.trackers.plain import doubles, plain
from bridge.metrics.trackers.secrets import without_secrets
from bridge.metrics.trackers.tracker import Metrics

#: Integers up to here are 32-bit floats too.
_EXACT = 2**24
_starts = itertools.count()


class TensorBoardTracker(BackgroundTracker):
    """Event files in a folder.

    Args:
        directory: the folder; missing folders are created.
        step: the step that training starts after. TensorBoard then ignores later steps in older files of the folder, because
            these steps are trained again, or (at 0) because they are of another run.
        config: the run's options, shown as a text; secrets are taken out.
    """

    service = "TensorBoard"

    def __init__(self, directory: str, *, step: int = 0, config: Metrics | None = None) -> None:
        self._directory = directory
        self._step = step
        self._config = without_secrets(plain(config or {}))
        self._described: set[str] = set()
        os.makedirs(directory, exist_ok=True)
        super().__init__()

    def log(self, metrics: Metrics, step: int) -> None:
        now, numbers = time.time(), doubles(metrics)
        large = {key: value for key, value in plain(metrics).items() if isinstance(value, int) and abs(value) > _EXACT}
        self._put(lambda: self._write_row(numbers, large, step, now))

    def summary(self, facts: Metrics) -> None:
        texts = without_secrets(plain(facts))
        self._put(lambda: self._write(self._step, [self._text("facts", texts)]))

    def how_to_look(self) -> list[str]:
        return [f"TensorBoard: tensorboard --logdir {shlex.quote(self._directory)}"]

    # In the tracker's own thread.

    def _open(self) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events, self._summaries, self._tensors = event_pb2, summary_pb2, tensor_pb2
        self._single = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
        # Readers take the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() / 1e9:017.6f}.{socket.gethostname()}.{os.getpid()}.{next(_starts)}"
        self._file = open(os.path.join(self._directory, name), "xb", buffering=0)  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._record(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._record(step=self._step + 1 if self._step else 0, session_log=start)
        if self._config:
            self._write(self._step, [self._text("config", self._config)])

    def _write_row(self, numbers: dict[str, float], large: dict[str, int], step: int, now: float) -> None:
        values = [self._value(tag, "scalars", simple_value=number) for tag, number in numbers.items()]
        self._write(step, values + ([self._text("integers", large)] if large else []), now)

    def _text(self, tag: str, content: Any) -> Any:
        text = "    " + json.dumps(content, indent=2).replace("\n", "\n    ")  # as code: Markdown is rendered
        tensor = self._tensors.TensorProto(dtype="DT_STRING", string_val=[text.encode()], tensor_shape=self._single)
        return self._value(tag, "text", tensor=tensor)

    def _value(self, tag: str, plugin: str, **content: Any) -> Any:
        """A value with its tag; the first value of a tag has the description."""
        if tag not in self._described:
            self._described.add(tag)
            key = find_key(tag)
            content["metadata"] = self._summaries.SummaryMetadata(
                plugin_data=self._summaries.SummaryMetadata.PluginData(plugin_name=plugin),
                summary_description=f"{key.meaning} [{key.unit}]" if key else "",
            )
        return self._summaries.Summary.Value(tag=tag, **content)

    def _write(self, step: int, values: list[Any], wall_time: float | None = None) -> None:
        self._record(wall_time, step=step, summary=self._summaries.Summary(value=values))

    def _record(self, wall_time: float | None = None, **fields: Any) -> None:
        event = self._events.Event(wall_time=time.time() if wall_time is None else wall_time, **fields)
        self._records.write(event.SerializeToString())

    def _release(self) -> None:
        self._file.close()
