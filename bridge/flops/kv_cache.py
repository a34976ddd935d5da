"""Moved to :mod:`bridge.planning.kv_cache`; this name goes with the next release."""

from bridge.planning.kv_cache import *  # noqa: F403
