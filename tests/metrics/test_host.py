"""What a callback is told of a loop: by an adapter, by our own state, by one shaped like Megatron-Bridge's."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from bridge.config.schema import Config, LoggerConfig, ModelConfig
from bridge.metrics.host import LOG_INTERVAL, Host, host_of
from bridge.metrics.trackers import Trackers
from bridge.training.state import TrainState


def test_an_adapters_word_is_taken_as_it_is():
    host = Host(config=None, log_interval=None)
    assert host_of(host, [object()]) is host


def test_our_own_state():
    trackers = Trackers()
    state = TrainState(
        cfg=Config(model=ModelConfig(), logger=LoggerConfig(log_interval=7)), number_format="bf16", trackers=trackers
    )
    host = host_of(state, ["chunk"])
    state.step = 5
    assert (host.step(), host.log_interval, host.number_format, host.model) == (5, 7, "bf16", ["chunk"])
    assert (host.trackers, host.device, host.hardware) == (trackers, torch.device("cpu"), state.cfg.hardware)


def test_a_foreign_state_says_what_it_has():
    progress = SimpleNamespace(step=3)
    host = host_of(SimpleNamespace(cfg=SimpleNamespace(model={}), train_state=progress, device="cuda:9 or so"), None)
    progress.step = 4
    assert (host.step(), host.log_interval, host.number_format, host.device, host.train) == (4, LOG_INTERVAL, None, None, None)
    assert not host.trackers
