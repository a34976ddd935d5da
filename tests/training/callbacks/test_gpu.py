"""On a GPU: whole steps with the callback on and every device sync an error. Skipped elsewhere."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from callback_driver import MODEL, Loop, config, draw, packed, state

from bridge.flops import compile_plan
from bridge.training.callbacks import ThroughputCallback

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.fixture(params=["alone", "nccl"])
def job(request):
    """One process, without and with a process group."""
    if request.param == "nccl":
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29511")
        dist.init_process_group("nccl", rank=0, world_size=1, device_id=torch.device("cuda", 0))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_no_step_waits_for_the_device(job, where):
    drawn = draw(1, 80)
    batches = [
        {key: value.to(where) if torch.is_tensor(value) else value for key, value in packed(lengths).items()} for lengths in drawn
    ]
    callback = ThroughputCallback("exact", peak_flops=1e15)
    loop = Loop([callback], state(config()), iter(batches)).start().steps(8)  # kernels load, NCCL connects
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.steps(32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    loop.end()
    lengths = [length for one in drawn for length in one]
    assert callback.latest["step"] == 40
    assert callback.latest["throughput/total_flops"] == compile_plan(MODEL, convention="exact").flops(lengths)
    assert callback.state_dict()["complete"]


def test_seconds_are_the_devices(job):
    matrix = torch.randn(4096, 4096, device="cuda")
    callback = ThroughputCallback("exact", peak_flops=1e15)
    loop = Loop([callback], state(config()), map(packed, draw(1, 40))).start().steps(4)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(4):
        for _ in range(50):
            matrix @ matrix
        loop.steps(1)
    end.record()
    loop.end()
    torch.cuda.synchronize()
    assert callback.latest["throughput/step_time"] == pytest.approx(start.elapsed_time(end) / 4e3, rel=0.1)
