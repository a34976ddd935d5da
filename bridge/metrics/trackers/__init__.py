"""Destinations for rows of metrics: JSON lines, W&B, TensorBoard, MLflow and others; several at once. Only one rank has trackers.

A tracker may fail at any time (no network, a full disk, a service that dies): it then warns once and is not used any more.
Training is not affected: no error leaves :class:`Trackers`, and a tracker that communicates with another process or machine does
so in a thread of its own, so that a stuck connection cannot delay a step.

``tracker``     the interface of a tracker; all trackers of a run as one
``opening``     opens the trackers that the options of ``logger`` ask for
``background``  a tracker that works in a thread
``plain``       converts values to numbers and strings
``secrets``     hides secrets
and one file per tracker.
"""

from bridge.metrics.trackers.jsonl import JsonlTracker
from bridge.metrics.trackers.opening import check_installed, is_installed, open_trackers
from bridge.metrics.trackers.secrets import without_secrets
from bridge.metrics.trackers.tracker import Tracker, Trackers
from bridge.metrics.trackers.wandb import AttachedWandb, attached, default_mode

__all__ = [
    "AttachedWandb",
    "JsonlTracker",
    "Tracker",
    "Trackers",
    "check_installed",
    "default_mode",
    "is_installed",
    "open_trackers",
    "without_secrets",
    "attached",
]
