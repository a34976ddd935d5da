"""Moved to :mod:`bridge.planning.provenance`; this name goes with the next release."""

from bridge.planning.provenance import *  # noqa: F403
