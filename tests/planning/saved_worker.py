"""Tensors that megatron-core's own layers keep for the backward pass, on the meta device: saved_worker.py CASES RESULTS."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from bridge.training.engine.initialize import prepare_libraries

prepare_libraries()

import torch  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402
from megatron.core.transformer.module import Float16Module  # noqa: E402
from megatron.core.transformer.moe import moe_utils  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

from bridge.config import Config, ModelConfig  # noqa: E402
from bridge.training.engine import model as training  # noqa: E402


class OnMeta(TorchFunctionMode):
    """Everything is made without memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).split(":")[0] in ("cpu", "cuda"):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class Saved:
    """Bytes of tensors kept for the backward pass, each stretch of memory once, by the module that keeps them."""

    def __init__(self, model: torch.nn.Module) -> None:
        owned = [*model.parameters(), *model.buffers()]
        self.seen = {tensor.untyped_storage()._cdata for tensor in owned}
        self.alive: list[torch.Tensor] = []
        self.bytes: dict[str, int] = defaultdict(int)
        self.inside = [""]
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.inside.append(name))
            module.register_forward_hook(self.leave)

    def leave(self, *_: Any) -> None:
        self.inside.pop()

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.bytes[self.inside[-1]] += storage.nbytes()
        self.alive.append(tensor)
        return tensor


def run(case: dict[str, Any]) -> dict[str, int]:
    cfg = Config(model=ModelConfig(**case["model"]))
    config = training.transformer_config(cfg)
    device = torch.device(case["device"])
    if device.type == "meta":
        config.init_model_with_meta_device = True
    model = training._gpt(cfg, config, None).to(device)
    model = Float16Module(config, model) if config.bf16 else model
    saved = Saved(getattr(model, "module", model))
    shape = case["sequences"], cfg.model.seq_length
    tokens = torch.zeros(shape, dtype=torch.int64, device=device)
    positions = torch.zeros(shape, dtype=torch.int64, device=device)
    mask = torch.ones(1, 1, shape[1], shape[1], dtype=torch.bool, device=device).triu(1)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        model(tokens, positions, mask, labels=tokens)
    moe_utils.get_moe_layer_wise_logging_tracker().clear()
    return saved.bytes


def main(cases: Path, results: Path) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    # megatron-core's own core attention, which the plan's LOCAL describes, and our norm, which computes as its own does.
    training._LOCAL_MODULES = {training.WrappedTorchNorm: training.Norm}
    found = {}
    for name, case in json.loads(cases.read_text()).items():
        usual = torch.cuda.current_device
        if case["device"] == "meta":
            torch.cuda.current_device = lambda: "meta"
            with OnMeta():
                found[name] = run(case)
        else:
            found[name] = run(case)
        torch.cuda.current_device = usual
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
