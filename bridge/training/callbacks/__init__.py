"""Callbacks: code that a training loop calls at its events.

``events``      the events, the context, ``Callback`` and ``CallbackManager``
``throughput``  ``ThroughputCallback``: exact FLOPs, MFU, token rates
``progress``    ``ProgressCallback``: the console
"""

from bridge.training.callbacks.events import (
    EVENTS,
    Callback,
    CallbackContext,
    CallbackManager,
    normalize_callbacks,
    should_fire,
)
from bridge.training.callbacks.progress import ProgressCallback
from bridge.training.callbacks.throughput import ThroughputCallback

__all__ = [
    "EVENTS",
    "Callback",
    "CallbackContext",
    "CallbackManager",
    "ProgressCallback",
    "ThroughputCallback",
    "normalize_callbacks",
    "should_fire",
]
