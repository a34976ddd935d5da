"""Moved to :mod:`bridge.planning.inference`; this name goes with the next release."""

from bridge.planning.inference import *  # noqa: F403
