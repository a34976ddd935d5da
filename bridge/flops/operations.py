"""Moved to :mod:`bridge.planning.ledger` and its exhibits; this name goes with the next release."""

from bridge.planning.exhibits.lora_notebook import *  # noqa: F403
from bridge.planning.ledger import *  # noqa: F403
