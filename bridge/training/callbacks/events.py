"""Events of training, the object that a callback receives, and the manager that calls the callbacks.

Names, fields and order are Megatron-Bridge's (0.3), so an object written for one loop can be registered in the other::

    on_train_start
    for each step:
        on_train_step_start
            forward and backward of all micro-batches, optimizer
        on_train_step_end
        now and then:  on_eval_start, (on_eval_step_start, on_eval_step_end) ..., on_eval_end
        now and then:  on_checkpoint_save, then the callbacks' state_dict() is read and the checkpoint is written
    on_test_start, (on_test_step_start, on_test_step_end) ..., on_test_end
    on_train_end

``on_checkpoint_save`` and the state of callbacks are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EVENTS = (
    "on_train_start",
    "on_train_step_start",
    "on_train_step_end",
    "on_train_end",
    "on_eval_start",
    "on_eval_step_start",
    "on_eval_step_end",
    "on_eval_end",
    "on_test_start",
    "on_test_step_start",
    "on_test_step_end",
    "on_test_end",
    "on_checkpoint_save",
)


@dataclass
class CallbackContext:
    """What a callback may read; only ``user_state`` is meant to be changed.

    ======================  =====================================
    field                   available at
    ======================  =====================================
    state                   every event
    model                   every event
    user_state              every event
    optimizer, scheduler    training events
    loss_dict               ``on_train_step_end``
    grad_norm               ``on_train_step_end``, if computed
    skipped_iter            ``on_train_step_end``
    total_loss_dict         ``on_eval_end``, ``on_test_end``
    ======================  =====================================
    """

    state: Any
    """The run: ``state.cfg``, ``state.train_state.step`` (completed steps) and more."""
    model: Sequence[Any]
    """Model chunks of this rank; more than one under virtual pipelining."""
    user_state: dict[str, Any] = field(default_factory=dict)
    """Shared by all callbacks, from event to event."""
    optimizer: Any | None = None
    scheduler: Any | None = None
    loss_dict: dict[str, Any] | None = None
    """Losses of the step by name, as scalar tensors; empty on ranks without the last pipeline stage."""
    grad_norm: float | None = None
    skipped_iter: bool | None = None
    """Whether the step ended without updating the weights."""
    total_loss_dict: dict[str, Any] | None = None
    """Losses of a whole evaluation."""


class Callback:
    """Base class: override the events you need. It is optional; any object with such methods works.

    A callback may also have ``observe(data_iterator)``, which returns an iterator to be used instead, and
    ``state_dict()`` with ``load_state_dict(state)``, kept in checkpoints.
    """

    def on_train_start(self, context: CallbackContext) -> None:
        """The model is in training mode, and the first step comes next."""

    def on_train_step_start(self, context: CallbackContext) -> None:
        """A training step begins."""

    def on_train_step_end(self, context: CallbackContext) -> None:
        """A training step is over, including the update of the weights."""

    def on_train_end(self, context: CallbackContext) -> None:
        """Training is over."""

    def on_eval_start(self, context: CallbackContext) -> None:
        """The model is in evaluation mode, and an evaluation begins."""

    def on_eval_step_start(self, context: CallbackContext) -> None:
        """An evaluation step begins."""

    def on_eval_step_end(self, context: CallbackContext) -> None:
        """An evaluation step is over."""

    def on_eval_end(self, context: CallbackContext) -> None:
        """The evaluation is over, and the model is not yet back in training mode."""

    def on_test_start(self, context: CallbackContext) -> None:
        """As on_eval_start, for the test set."""

    def on_test_step_start(self, context: CallbackContext) -> None:
        """As on_eval_step_start, for the test set."""

    def on_test_step_end(self, context: CallbackContext) -> None:
        """As on_eval_step_end, for the test set."""

    def on_test_end(self, context: CallbackContext) -> None:
        """As on_eval_end, for the test set."""

    def on_checkpoint_save(self, context: CallbackContext) -> None:
        """A checkpoint is about to be written, on all ranks; ``state_dict()`` is read next."""


Hook = Callable[[CallbackContext], None]


class CallbackManager:
    """Calls callbacks in the order they were added.

    Exceptions propagate to the training loop: a callback that must never stop a run has to catch its own.
    """

    def __init__(self, callbacks: Iterable[Any] = ()) -> None:
        self._hooks: dict[str, list[Hook]] = {event: [] for event in EVENTS}
        self._callbacks: list[Any] = []
        self._user_state: dict[str, Any] = {}
        self.add(list(callbacks))

    @property
    def user_state(self) -> dict[str, Any]:
        """The dictionary that all callbacks share; pass it to every ``CallbackContext``."""
        return self._user_state

    @property
    def callbacks(self) -> tuple[Any, ...]:
        """The objects that were added."""
        return tuple(self._callbacks)

    @property
    def events(self) -> frozenset[str]:
        """Names of all events."""
        return frozenset(EVENTS)

    def add(self, callback: Any | Sequence[Any]) -> None:
        """Register an object, or a list of objects, for each event that it has a method for."""
        for one in callback if isinstance(callback, (list, tuple)) else [callback]:
            self._callbacks.append(one)
            for event in EVENTS:
                hook = getattr(one, event, None)
                if callable(hook) and getattr(hook, "__func__", None) is not getattr(Callback, event):
                    self._hooks[event].append(hook)

    def register(self, event_name: str, fn: Hook) -> None:
        """Register a function for one event.

        Raises:
            ValueError: there is no such event.
        """
        self._of(event_name).append(fn)

    def list_callbacks(self, event_name: str) -> list[Hook]:
        """The functions that an event calls, in order.

        Raises:
            ValueError: there is no such event.
        """
        return list(self._of(event_name))

    def has_callbacks(self, event_name: str) -> bool:
        """Whether anything is registered for an event."""
        return bool(self._hooks.get(event_name))

    def fire(self, event_name: str, context: CallbackContext) -> None:
        """Call everything that is registered for an event."""
        for hook in self._hooks[event_name]:
            hook(context)

    def _of(self, event_name: str) -> list[Hook]:
        try:
            return self._hooks[event_name]
        except KeyError:
            raise ValueError(f"unknown event {event_name!r}; events are {', '.join(EVENTS)}") from None

    # ---- ours -----------------------------------------------------------------------------------------------------

    def observe(self, data_iterator: Any) -> Any:
        """The training data iterator (or the list of them, one per model chunk), wrapped by the callbacks."""
        for callback in self._callbacks:
            if hasattr(callback, "observe"):
                data_iterator = callback.observe(data_iterator)
        return data_iterator

    def state_dict(self) -> dict[str, Any]:
        """The callbacks' state for a checkpoint, by class name; call it after ``on_checkpoint_save`` on all ranks."""
        return {name: callback.state_dict() for name, callback in self._named() if hasattr(callback, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, before ``on_train_start``; new callbacks receive nothing."""
        for name, callback in self._named():
            if name in state and hasattr(callback, "load_state_dict"):
                callback.load_state_dict(state[name])

    def _named(self) -> list[tuple[str, Any]]:
        """Callbacks by class name; the second of a class is ``Name#2``."""
        seen: dict[str, int] = {}
        named = []
        for callback in self._callbacks:
            name = type(callback).__name__
            seen[name] = seen.get(name, 0) + 1
            named.append((name if seen[name] == 1 else f"{name}#{seen[name]}", callback))
        return named


def normalize_callbacks(callbacks: Sequence[Any] | CallbackManager | None) -> CallbackManager | None:
    """A manager for a list of callbacks, a manager, or nothing."""
    if callbacks is None or isinstance(callbacks, CallbackManager):
        return callbacks
    return CallbackManager(callbacks)


def should_fire(callback_manager: CallbackManager | None, event_name: str) -> bool:
    """Whether there is a manager that has something to call at this event."""
    return callback_manager is not None and callback_manager.has_callbacks(event_name)
