"""One rank of ``test_megatron_bridge_flops.py``: a step of each layout, in one launch; writes what the ranks resolved.

torchrun --nproc-per-node 2 megatron_bridge_flops_worker.py FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from bridge.training.utils import flop_utils

#: Micro-batches of each rank: lengths of the packed sequences; each is padded to a multiple of 8.
PACKED = [[[3, 5, 9], [17]], [[1, 30], [8, 8]]]
#: Images and videos (frames, height, width) of each rank's first micro-batch: the second rank has none.
GRIDS: list[list[list[int]]] = [[[1, 4, 6], [3, 4, 4]], []]
#: Lengths that each rank's sequences of its first micro-batch cross-attend to; padded to a multiple of 4.
KEYS = [[2, 4, 7], [5, 6]]
#: Rows and width of a dense micro-batch; a rank of two that share its context has half the width.
DENSE = (2, 64)


def offsets(lengths: list[int], multiple: int = 1) -> torch.Tensor:
    return torch.tensor([0, *accumulate(-(-length // multiple) * multiple for length in lengths)], dtype=torch.int32)


def packed(lengths: list[int]) -> dict[str, Any]:
    padded = offsets(lengths, 8)
    return {"tokens": torch.zeros(1, int(padded[-1])), "cu_seqlens": padded, "cu_seqlens_unpadded": offsets(lengths)}


def step(micro_batches: list[dict[str, Any]], **resolve: Any) -> dict[str, Any]:
    """Micro-batches through every chunk, then the sums, as Megatron-Bridge's loop asks for them."""
    state = SimpleNamespace()
    for vp_stage in range(resolve.get("vp_size") or 1):
        for micro_batch in micro_batches:
            flop_utils.accumulate_flops_metadata(state, vp_stage=vp_stage, **micro_batch)
    three = {key: value for key, value in resolve.items() if not key.startswith("include")}
    assert flop_utils.resolve_global_flops_seqlen_stats(state, **three) is not None  # the same collective on every rank
    return asdict(flop_utils.resolve_global_flops_runtime_stats(state, **resolve))


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, everyone = dist.get_rank(), dist.group.WORLD
    alone = [dist.new_group([member]) for member in range(2)][rank]
    data_parallel = {"data_parallel_size": 2, "dp_group": everyone}
    sharing_context = {"data_parallel_size": 1, "dp_group": alone}
    text = [packed(lengths) for lengths in PACKED[rank]]
    shared = [packed(lengths) for lengths in PACKED[0]]

    grids = torch.tensor(GRIDS[rank], dtype=torch.int64).reshape(-1, 3)
    images = flop_utils.vision_patch_stats_from_grid_thw(grids, spatial_merge_size=2)
    pictured = [text[0] | {"vision_patch_stats": images}, text[1] | {"vision_patch_stats": (0, 0, 0)}]
    keys = {"cross_cu_seqlens": offsets(KEYS[rank], 4), "cross_cu_seqlens_unpadded": offsets(KEYS[rank])}
    rows, width = DENSE
    dense = {"tokens": torch.zeros(rows, width), "config_seq_len": width}
    part = dense | {"tokens": torch.zeros(rows, width // 2)}

    results = {
        "packed": step(text, **data_parallel),
        "virtual stages": step(text, vp_size=3, **data_parallel),
        "context shared": step(shared, **sharing_context),
        "images": step(pictured, include_vision_patch_stats=True, **data_parallel),
        "images not asked for": step(pictured, **data_parallel),
        "cross attention": step([text[0] | keys], include_cross_attention_stats=True, **data_parallel),
        "everything": step(
            [pictured[0] | keys, pictured[1]],
            include_vision_patch_stats=True,
            include_cross_attention_stats=True,
            **data_parallel,
        ),
        "dense": step([dense, dense], **data_parallel),
        "dense, context shared": step([part, part], **sharing_context),
        "no data": step([{"tokens": None}], **data_parallel),
    }
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
