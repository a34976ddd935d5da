"""Moved to :mod:`bridge.planning.byte_patches`; this name goes with the next release."""

from bridge.planning.byte_patches import *  # noqa: F403
