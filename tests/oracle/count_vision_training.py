"""Build every vision-language model as ``bridge train`` does, run its forward step on images, print what it counts as JSON.

Its towers are also given the weights of those of transformers: the same images must come out of both.

A process of its own: megatron-core's groups, and the redirect from CUDA to the CPU, are global.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from bridge.training.engine.initialize import prepare_libraries

prepare_libraries()

from megatron.core import parallel_state  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2_5_vl  # noqa: E402
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl  # noqa: E402
from transformers.utils import logging  # noqa: E402

from bridge.config import Config, ModelConfig  # noqa: E402
from bridge.data.batching import MicroBatch  # noqa: E402
from bridge.data.images import ImageData  # noqa: E402
from bridge.metrics.batch_lengths import read_lengths  # noqa: E402
from bridge.training.engine.model import build_model, check_trainable  # noqa: E402
from bridge.training.engine.vision import VisionModel  # noqa: E402
from bridge.training.step import forward_step  # noqa: E402
from oracle.counter import count  # noqa: E402
from oracle.vision_training_cases import BATCHES, CASES, LANGUAGE, config  # noqa: E402

CPU = torch.device("cpu")

# ---- what is counted ------------------------------------------------------------------------------------------------


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
    (chunk,) = build_model(cfg, CPU)
    found: dict[str, Any] = {}
    for name, images in BATCHES.items():
        batch = batch_of(data, images)
        losses: list[torch.Tensor] = []

        def forward(batch: MicroBatch = batch, losses: list[torch.Tensor] = losses) -> None:
            output, reduce = forward_step(CPU, iter([batch]), chunk)
            losses.append(reduce(output)[0])

        lengths = read_lengths(batch)
        assert lengths is not None
        found[name] = {
            "sequences": lengths.sequences.tolist(),
            "patches": [] if lengths.image_patches is None else lengths.image_patches.tolist(),
            "forward": count(forward),
            "backward": count(losses[0].backward),
        }
    found["parameters"] = sum(parameter.numel() for parameter in chunk.parameters())
    found["trainable"] = sum(parameter.numel() for parameter in chunk.parameters() if parameter.requires_grad)
    return found


# ---- what comes out -------------------------------------------------------------------------------------------------

TOWERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen2_5_vl": (
        qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel,
        {"depth": 3, "hidden_act": "silu", "window_size": 16, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": (
        qwen3_vl.Qwen3VLVisionModel,
        {"depth": 4, "hidden_act": "gelu_pytorch_tanh", "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]},
    ),
}
#: Frames, rows and columns of the images, in patches; windows of 4 x 4 do not fit into all of them.
GRIDS = [[1, 6, 10], [2, 4, 4], [1, 2, 14]]
RENAMED = (
    (r"blocks\.(\d+)\.norm1", r"decoder.layers.\1.input_layernorm"),
    (r"blocks\.(\d+)\.norm2", r"decoder.layers.\1.pre_mlp_layernorm"),
    (r"blocks\.(\d+)\.attn\.qkv", r"decoder.layers.\1.self_attention.linear_qkv"),
    (r"blocks\.(\d+)\.attn\.proj", r"decoder.layers.\1.self_attention.linear_proj"),
    (r"blocks\.(\d+)\.mlp\.gate_up_proj", r"decoder.layers.\1.mlp.linear_fc1"),
    (r"blocks\.(\d+)\.mlp\.down_proj", r"decoder.layers.\1.mlp.linear_fc2"),
    (r"blocks\.(\d+)\.mlp", r"decoder.layers.\1.mlp"),
    (r"merger\.ln_q", "merger.norm"),
    (r"merger\.mlp\.0", "merger.linear_fc1"),
    (r"merger\.mlp\.2", "merger.linear_fc2"),
    (r"patch_embed\.proj", "patch_embed"),
)


def compare(name: str) -> float:
    """The largest difference between the outputs of a tower of transformers and of ours with its weights."""
    kind, options = TOWERS[name]
    sizes = {"hidden_size": 24, "num_heads": 2, "intermediate_size": 40, "patch_size": 4, "out_hidden_size": 32, **options}
    config = kind.config_class(**sizes, attn_implementation="eager")
    theirs = kind(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    model = ModelConfig(**LANGUAGE, vision_config={**sizes, "in_channels": 3, "temporal_patch_size": 2})
    (chunk,) = build_model(Config(model=model), CPU)
    ours = chunk.module.vision_model
    assert isinstance(ours, VisionModel)
    take(ours, theirs.state_dict(), heads=2)
    pixels = torch.randn(sum(frames * rows * columns for frames, rows, columns in GRIDS), 3 * 2 * 4 * 4)
    with torch.no_grad():
        expected = theirs(pixels, torch.tensor(GRIDS))
        merged, deep = ours(pixels, GRIDS)
    pairs = [(expected.pooler_output, merged), *zip(getattr(expected, "deepstack_features", []), deep, strict=True)]
    return max(float((theirs - ours).abs().max() / theirs.abs().max()) for theirs, ours in pairs)


def take(tower: VisionModel, weights: dict[str, torch.Tensor], heads: int) -> None:
    """Load the weights of a tower of transformers."""
    weights = dict(weights)
    for name in [name for name in weights if ".mlp.gate_proj." in name]:
        gate, up = weights.pop(name), weights.pop(name.replace("gate_proj", "up_proj"))
        weights[name.replace("gate_proj", "gate_up_proj")] = torch.cat([gate, up])
    renamed = {}
    for name, weight in weights.items():
        if ".attn.qkv." in name:  # megatron-core's order: the query, key and value of one head after those of the other
            weight = weight.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight.flatten(1) if name == "patch_embed.weight" else weight
    missing, unexpected = tower.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all("_extra_state" in name for name in missing), missing


def main() -> None:
    logging.set_verbosity_error()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    model_parallel_cuda_manual_seed(1)
    counted = {f"{model}/{frozen}": measure(model, frozen) for model, frozen in CASES}
    print(json.dumps({"counted": counted, "towers": {name: compare(name) for name in TOWERS}}))


if __name__ == "__main__":
    main()
