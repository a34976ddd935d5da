"""Callbacks that do to a training what happens in a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence

from bridge.training.callbacks import Callback, CallbackContext


class Accident(Callback):
    """Something that happens to one rank when a step ends.

    Args:
        steps: the step in which it happens to the workers that torchrun starts first, to those it starts next, and so on.
        rank: whom it befalls.
    """

    def __init__(self, steps: Sequence[int], rank: int = 1) -> None:
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self.step = steps[attempt] if attempt < len(steps) else None
        self.rank = rank

    def on_train_step_end(self, context: CallbackContext) -> None:
        if (context.state.step, context.state.groups.rank) == (self.step, self.rank):
            self.happen()

    def happen(self) -> None:
        raise NotImplementedError


class Killed(Accident):
    """As by the kernel when memory is short."""

    def happen(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Vanished(Accident):
    """The machine is gone: all that ran on it at once, torchrun too."""

    def happen(self) -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


class CutOff(Accident):
    """The machine (a network namespace) loses its network."""

    def __init__(self, link: str, steps: Sequence[int], rank: int = 1) -> None:
        super().__init__(steps, rank)
        self.link = link

    def happen(self) -> None:
        subprocess.run(["ip", "link", "set", self.link, "down"], check=True)


class KilledInSave(Killed):
    """While the checkpoint of a step is written."""

    def on_train_step_end(self, context: CallbackContext) -> None:
        pass

    def on_checkpoint_save(self, context: CallbackContext) -> None:
        super().on_train_step_end(context)


class Times(Callback):
    """An independent record of when things happen on the first rank: seconds since 1970, a line each."""

    def __init__(self, file: str) -> None:
        self.file = file

    def note(self, what: str) -> None:
        if os.environ.get("RANK") == "0":
            with open(self.file, "a") as file:
                file.write(f"{what} {time.time()}\n")

    def on_train_start(self, context: CallbackContext) -> None:
        self.note("start")

    def on_train_step_end(self, context: CallbackContext) -> None:
        self.note(f"step{context.state.step}")

    def on_train_end(self, context: CallbackContext) -> None:
        self.note("end")
