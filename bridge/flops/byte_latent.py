"""Moved to :mod:`bridge.planning.exhibits.byte_latent`; this name goes with the next release."""

from bridge.planning.exhibits.byte_latent import *  # noqa: F403
