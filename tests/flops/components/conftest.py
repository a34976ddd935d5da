"""Blocks run as the oracle's models do."""

from oracle.conftest import one_thread as one_thread
