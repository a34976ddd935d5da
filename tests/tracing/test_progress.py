"""Progress is shown on a terminal only, after a second only, and is erased at the end."""

import io
import sys

import pytest

from bridge.tracing import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "seconds", "told"), [(Terminal, 1.5, True), (Terminal, 0.5, False), (io.StringIO, 1.5, False)]
)
def test_a_line_that_goes_away(stream, seconds, told, monkeypatch):
    out, now = stream(), [0.0]
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress("Model")
    shown.step()
    assert out.getvalue() == ""
    now[0] = seconds
    shown.step()
    shown.done()
    assert out.getvalue() == ("\rtracing Model: run 2\r\x1b[K" if told else "")
