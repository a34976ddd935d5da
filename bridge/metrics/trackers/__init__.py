"""Where rows of metrics go: JSON lines, W&B, TensorBoard, MLflow; several at once. Only the rank that writes has trackers.

A tracker may fail at any time (no network, a full disk, a service that dies): then it says so once and is silent from
there on.  Training never notices: nothing here raises, and what talks to another process or machine does so from a
thread of its own, so that a stuck connection cannot hold a step back.

``tracker``     what a tracker is; all trackers of a run as one
``opening``     from the options of ``logger`` to trackers
``background``  a tracker whose work is done in a thread
``plain``       what can be stored: numbers, texts
``secrets``     what must not be
and one file a tracker.
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
