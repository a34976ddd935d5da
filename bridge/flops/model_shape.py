"""Moved to :mod:`bridge.flops.shapes` and :mod:`bridge.flops.reading`; this name goes with the next release."""

from bridge.flops.reading import *  # noqa: F403
from bridge.flops.shapes import *  # noqa: F403
