"""Build every vision-language model as ``bridge train`` does, run its forward step on images, print what it counts as JSON.

A process of its own: megatron-core's groups, and the redirect from CUDA to the CPU, are global.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from bridge.training.initialize import prepare_libraries

prepare_libraries()

from megatron.core import parallel_state  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402

from bridge.data.batching import MicroBatch  # noqa: E402
from bridge.data.images import ImageData  # noqa: E402
from bridge.metrics.batch_lengths import read_lengths  # noqa: E402
from bridge.training.model import build_model, check_trainable  # noqa: E402
from bridge.training.step import forward_step  # noqa: E402
from oracle.counter import count  # noqa: E402
from oracle.vision_training_cases import BATCHES, FROZEN, MODELS, config  # noqa: E402


def batch_of(data: ImageData, images: tuple[int, ...]) -> MicroBatch:
    """A micro-batch of samples with so many images each."""
    chosen: list[Any] = []
    for wanted in images:
        samples = (data.training[index] for index in range(200))
        chosen.append(next(sample for sample in samples if len(sample.grids) == wanted))
    return data.collate(chosen)


def measure(model: str, frozen: str) -> dict[str, Any]:
    """What a case counts on each micro-batch, the lengths in it, and the parameters."""
    cfg = config(model, frozen)
    check_trainable(cfg)
    data = ImageData(cfg)
    (chunk,) = build_model(cfg, torch.device("cpu"))
    found: dict[str, Any] = {}
    for name, images in BATCHES.items():
        batch = batch_of(data, images)

        def loss(batch: MicroBatch = batch) -> torch.Tensor:
            output, reduce = forward_step(torch.device("cpu"), iter([batch]), chunk)
            return reduce(output)[0]

        lengths = read_lengths(batch)
        assert lengths is not None
        found[name] = {
            "sequences": lengths.sequences.tolist(),
            "patches": [] if lengths.image_patches is None else lengths.image_patches.tolist(),
            "forward": count(loss),
            "training": count(lambda: loss().backward()),
        }
    found["parameters"] = sum(parameter.numel() for parameter in chunk.parameters())
    found["trainable"] = sum(parameter.numel() for parameter in chunk.parameters() if parameter.requires_grad)
    return found


def main() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    model_parallel_cuda_manual_seed(1)
    print(json.dumps({f"{model}/{frozen}": measure(model, frozen) for model in MODELS for frozen in FROZEN}))


if __name__ == "__main__":
    main()
