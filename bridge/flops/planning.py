"""Moved to :mod:`bridge.planning.training_run`; this name goes with the next release."""

from bridge.planning.training_run import *  # noqa: F403
