"""Megatron-Bridge's bookkeeping of a step, for a training loop that prices its steps itself.

Its forward steps add the statistics of each micro-batch to the loop's state; its loop sums them over the data-parallel ranks
and prices the sums.  The names, arguments and state attributes are those of its ``training.utils.flop_utils`` at commit 067f987
(August 2026); ``bridge.training.utils.flop_utils`` exports them.  A state is any object that accepts attributes.

Sums of tensors on a device are tensors on that device; all other sums are ints.  Only the ``resolve`` functions, called once
per step, wait for a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from bridge.data.packed.files import shards_of
from bridge.flops.lengths import exact
from bridge.flops.moments import PaddedSum
from bridge.flops.plan import Plan, compile_plan, compile_vision_plan
from bridge.flops.plan_cache import PlanCache
from bridge.flops.reading import read_vision
from bridge.flops.shapes import ConfigError

if TYPE_CHECKING:
    import torch

Scalar: TypeAlias = "int | torch.Tensor"

#: Fields of the statistics with the attribute of the state that accumulates each, in the order in which ranks sum them.
_TEXT = {
    "seqlen_sum": "_flops_seqlen_sum",
    "seqlen_squared_sum": "_flops_seqlen_sq_sum",
}
_IMAGES = {"num_vision_patches": "_flops_vision_patches"}
_VISION = {
    "vision_patch_sum": "_flops_vision_patch_sum",
    "vision_patch_squared_sum": "_flops_vision_patch_sq_sum",
    "vision_merged_token_sum": "_flops_vision_merged_token_sum",
}
_CROSS = {
    "cross_seqlen_sum": "_flops_cross_seqlen_sum",
    "cross_seqlen_product_sum": "_flops_cross_seqlen_product_sum",
}
_EVERY = _TEXT | _IMAGES | _VISION | _CROSS
#: Set if ranks may have seen different lengths; otherwise all ranks have seen the same lengths.
_DIFFERS = "_flops_requires_global_reduce"


@dataclass(frozen=True)
class GlobalFlopsRuntimeStats:
    """The statistics of one training step, summed over all data-parallel ranks.

    Attributes:
        seqlen_sum: number of tokens including padding, on which every matmul except the attention core runs; None if no
            micro-batch was seen.
        seqlen_squared_sum: sum of the squared sequence lengths without padding; None if no micro-batch was seen.
        num_vision_patches: number of patches of all images, if only their total is known.
        vision_patch_sum: number of patches of all images and video frames, if each of them is known.
        vision_patch_squared_sum: sum of the squared patch counts of each image and each video frame.
        vision_merged_token_sum: number of tokens that the language model receives for them.
        cross_seqlen_sum: number of keys and values of cross attention including padding; None if there were none.
        cross_seqlen_product_sum: sum of queries x keys of each sequence without padding; None if there were none.
    """

    seqlen_sum: int | None
    seqlen_squared_sum: int | None
    num_vision_patches: int = 0
    vision_patch_sum: int = 0
    vision_patch_squared_sum: int = 0
    vision_merged_token_sum: int = 0
    cross_seqlen_sum: int | None = None
    cross_seqlen_product_sum: int | None = None

    @property
    def has_exact_vision_stats(self) -> bool:
        """Whether each image and frame is known, so that ``num_vision_patches`` is not needed."""
        return self.vision_patch_sum > 0


# ---- a micro-batch -----------------------------------------------------------------------------------


def accumulate_flops_metadata(
    state: Any,
    tokens: torch.Tensor | None,
    *,
    vp_stage: int | None = None,
    config_seq_len: int | None = None,
    cu_seqlens: torch.Tensor | None = None,
    cu_seqlens_argmin: torch.Tensor | None = None,
    cu_seqlens_unpadded: torch.Tensor | None = None,
    cu_seqlens_unpadded_argmin: torch.Tensor | None = None,
    cross_cu_seqlens: torch.Tensor | None = None,
    cross_cu_seqlens_unpadded: torch.Tensor | None = None,
    num_vision_patches: Scalar | None = None,
    vision_patch_stats: tuple[Scalar, Scalar, Scalar] | None = None,
) -> None:
    """Add one micro-batch to ``state`` without waiting for a device.

    Args:
        state: receives the sums, in attributes beginning with ``_flops_``.
        tokens: [b, s] or [b, s, ...]; only the shape matters. None (a pipeline stage without data) adds nothing.
        vp_stage: virtual stage of the chunk that runs. Every chunk sees every micro-batch; the first one (0 or None) adds it.
        config_seq_len: row length of a dense batch, because context parallelism may have left only a part of it on this rank.
        cu_seqlens: offsets [n + 1] or [1, n + 1] of packed sequences including their padding; None in a dense batch.
        cu_seqlens_argmin: number of valid offsets, if meaningless ones follow.
        cu_seqlens_unpadded: offsets of the same sequences without padding; if given, they determine the squares.
        cu_seqlens_unpadded_argmin: number of valid offsets among these.
        cross_cu_seqlens: offsets of the sequences that each sequence cross-attends to, including padding.
        cross_cu_seqlens_unpadded: the same without padding.
        num_vision_patches: number of patches of all images, if nothing more is known about them.
        vision_patch_stats: see ``vision_patch_stats_from_grid_thw``. If one rank passes them, all ranks must; pass (0, 0, 0)
            for a micro-batch without images.

    Raises:
        ValueError: The numbers of key and query sequences differ, or ``vision_patch_stats`` does not hold three sums.
    """
    if tokens is None or vp_stage not in (None, 0):
        return
    lengths = _lengths(cu_seqlens_unpadded, cu_seqlens_unpadded_argmin)
    if cu_seqlens_unpadded is None:
        lengths = _lengths(cu_seqlens, cu_seqlens_argmin)
    cross = _cross_attention(lengths, cross_cu_seqlens, cross_cu_seqlens_unpadded)
    if vision_patch_stats is not None and len(vision_patch_stats) != 3:
        raise ValueError(f"vision_patch_stats={vision_patch_stats!r} must be three sums: patches, their squares, merged tokens")
    rows, width = tokens.shape[:2]
    if lengths is None:
        length = config_seq_len if isinstance(config_seq_len, int) and config_seq_len > 0 else width
        _add(state, _TEXT, (rows * length, rows * length**2))
    else:
        _add(state, _TEXT, (rows * width, _sum(lengths * lengths)), ranks_differ=True)
    if cross is not None:
        _add(state, _CROSS, cross, ranks_differ=True)
    if vision_patch_stats is not None:
        _add(state, _VISION, vision_patch_stats, ranks_differ=True)
    if num_vision_patches is not None:
        _add(state, _IMAGES, (num_vision_patches,))


def _cross_attention(
    queries: torch.Tensor | None, padded_offsets: torch.Tensor | None, offsets: torch.Tensor | None
) -> tuple[Scalar, Scalar] | None:
    """Keys with their padding, and queries x keys without; None where nothing is attended to."""
    padded = _lengths(padded_offsets)
    keys = padded if offsets is None else _lengths(offsets)
    if keys is None:
        return None
    if queries is None or queries.shape != keys.shape:
        seen = "none" if queries is None else queries.numel()
        raise ValueError(
            f"cross attention needs matching query and key/value sequences, not {seen} and {keys.numel()}: "
            "give cu_seqlens and cross_cu_seqlens as many offsets"
        )
    return _sum(keys if padded is None else padded), _sum(queries * keys)


def _add(state: Any, names: Mapping[str, str], values: Iterable[Scalar], *, ranks_differ: bool = False) -> None:
    for name, value in zip(names.values(), values, strict=True):
        setattr(state, name, _number(getattr(state, name, 0)) + value)
    if ranks_differ:
        setattr(state, _DIFFERS, True)


def _lengths(offsets: torch.Tensor | None, count: torch.Tensor | int | None = None) -> torch.Tensor | None:
    """Lengths [rows, n] of the sequences between offsets [n + 1] or [rows, n + 1], int64; None where there are none.

    A length beyond the last valid offset is 0 if ``count`` is on a device, because the result's shape must not depend on it.
    """
    if offsets is None:
        return None
    offsets = offsets.reshape(-1, offsets.shape[-1])
    on_device = getattr(count, "is_cpu", True) is False
    if count is not None and not on_device:
        offsets = offsets[:, : int(count)]
    if offsets.shape[-1] < 2:
        return None
    lengths = offsets.long().diff().clamp(min=0)
    if on_device:
        import torch

        assert count is not None
        lengths = lengths * (torch.arange(1, offsets.shape[-1], device=offsets.device) < count)
    return lengths


def _sum(values: torch.Tensor) -> Scalar:
    """An int of a tensor in the host's memory, else a tensor on its device."""
    total = values.sum()
    return int(total) if total.is_cpu else total


def _number(value: Any) -> Scalar:
    """A sum so far: an int or a tensor []; 0 if the state has anything else in its place."""
    if isinstance(value, Integral):
        return int(value)
    import torch

    return value.reshape(()) if isinstance(value, torch.Tensor) and value.numel() else 0


def get_model_chunk_vp_stage(model: Any) -> int | None:
    """The virtual pipeline stage of a model chunk, wrapped (in ``.module``) or not; None where it has none."""
    while model is not None:
        stage = getattr(model, "vp_stage", None)
        if stage is not None:
            return stage if isinstance(stage, int) else None
        model = getattr(model, "module", None)
    return None


# ---- a step ------------------------------------------------------------------------------------------


def resolve_global_flops_runtime_stats(
    state: Any,
    *,
    data_parallel_size: int,
    vp_size: int | None = None,
    dp_group: Any = None,
    include_vision_patch_stats: bool = False,
    include_cross_attention_stats: bool = False,
) -> GlobalFlopsRuntimeStats:
    """The sums of all data-parallel ranks, one collective at most; the step's only wait for a device.

    Where every rank has seen the same lengths, and where there is no group, they are this rank's times ``data_parallel_size``.

    Args:
        state: what ``accumulate_flops_metadata`` added to; an attribute that is missing is 0.
        data_parallel_size: ranks of ``dp_group``.
        vp_size: virtual pipeline size; changes nothing, since the first chunk alone adds.
        dp_group: data-parallel ranks without context parallelism: ranks that share a sequence have the same sums.
        include_vision_patch_stats: sum the patches that were seen image by image; the same on every rank.
        include_cross_attention_stats: sum the lengths of cross attention; the same on every rank.
    """
    summed = _TEXT | _IMAGES
    summed |= _VISION if include_vision_patch_stats else {}
    summed |= _CROSS if include_cross_attention_stats else {}
    if data_parallel_size > 1 and dp_group is not None and _ranks_differ(state):
        totals = dict(zip(summed, _reduced([getattr(state, name, 0) for name in summed.values()], dp_group), strict=True))
    else:
        totals = {field: int(_number(getattr(state, name, 0))) * data_parallel_size for field, name in _EVERY.items()}
    known: dict[str, Any] = {field: max(total, 0) for field, total in totals.items()}
    for linear, product in (("seqlen_sum", "seqlen_squared_sum"), ("cross_seqlen_sum", "cross_seqlen_product_sum")):
        if not known.get(linear):
            known[linear] = known[product] = None
    if known["seqlen_sum"] is not None:
        known["seqlen_sum"] = PaddedSum(known["seqlen_sum"])
    return GlobalFlopsRuntimeStats(**known)


def resolve_global_flops_seqlen_stats(
    state: Any,
    *,
    data_parallel_size: int,
    vp_size: int | None = None,
    dp_group: Any = None,
) -> tuple[int | None, int | None, int]:
    """(tokens, squared lengths, vision patches) of all data-parallel ranks; arguments as for the full statistics."""
    stats = resolve_global_flops_runtime_stats(state, data_parallel_size=data_parallel_size, vp_size=vp_size, dp_group=dp_group)
    return stats.seqlen_sum, stats.seqlen_squared_sum, stats.num_vision_patches


def _ranks_differ(state: Any) -> bool:
    if not getattr(state, _DIFFERS, False):
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def _reduced(values: list[Any], group: Any) -> list[int]:
    """The sums over a group's ranks."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    totals = torch.stack([torch.as_tensor(_number(value), dtype=torch.int64, device=device) for value in values])
    torch.distributed.all_reduce(totals, op=torch.distributed.ReduceOp.SUM, group=group)
    return totals.tolist()


# ---- vision ------------------------------------------------------------------------------------------


def vision_patch_stats_from_grid_thw(grid_thw: torch.Tensor, *, spatial_merge_size: int) -> tuple[Scalar, Scalar, Scalar]:
    """Patches, squared patches and merged tokens of images and videos; no device is waited for.

    Every frame of a video attends by itself: t frames of h x w patches have t (h w)^2 pairs.

    Args:
        grid_thw: integers [..., 3], one row an image or video: frames, and patches down and across.
        spatial_merge_size: patches merged along each side to one token.

    Returns:
        ints, or tensors [] on the device of ``grid_thw``.

    Raises:
        ValueError: the last dimension is not 3, or ``spatial_merge_size`` is below 1.
    """
    if not grid_thw.dim() or grid_thw.shape[-1] != 3:
        raise ValueError(f"grid_thw must have shape [..., 3] (frames, height, width), not {list(grid_thw.shape)}")
    if spatial_merge_size < 1:
        raise ValueError(f"spatial_merge_size={spatial_merge_size} must be >= 1")
    if not grid_thw.numel():
        return 0, 0, 0
    frames, height, width = grid_thw.long().unbind(-1)
    patches = height * width
    return _sum(frames * patches), _sum(frames * patches * patches), _sum(frames * patches // spatial_merge_size**2)


class VisionPrices(NamedTuple):
    """Training FLOPs of a vision tower, for one unit of each sum over images and frames."""

    patch: int
    squared_patch: int
    merged_token: int
    spatial_merge_size: int

    def of_images(self, number: int | Fraction, patches: float | Fraction) -> int | Fraction:
        """The price of ``number`` images of ``patches`` patches each, which may be their mean."""
        each = Fraction(patches)
        price = self.patch * each + self.squared_patch * each**2 + self.merged_token * (each // self.spatial_merge_size**2)
        return _whole(number * price)


def _price_tower(cfg: Any) -> VisionPrices | None:
    vision = read_vision(cfg)
    if vision is None:
        return None
    try:
        plan: Plan | None = compile_plan(cfg)
    except ConfigError:  # only the tower is described, without its frozen parts
        plan = compile_vision_plan(cfg)
    assert plan is not None

    def price(kind: str) -> Any:
        return plan.evaluate([int(s.over == "images" and s.kind == kind) for s in plan.statistics])

    return VisionPrices(price("length"), price("square"), price("quotient"), vision.spatial_merge_size)


#: The prices of a configuration's vision tower, with the frozen parts that the configuration names; None without a tower.
vision_prices: PlanCache[VisionPrices | None] = PlanCache(_price_tower)


def vit_flops_from_patch_stats(cfg: Any, *, patch_sum: Scalar, patch_squared_sum: Scalar, merged_token_sum: Scalar) -> Scalar:
    """FLOPs of training a vision tower, from sums over images and frames: of patches, of their squares, of merged tokens.

    Together with ``num_floating_point_operations`` without patches it is the whole step: frozen parts are priced as there.

    Returns:
        An int, or a tensor [] of int64 on their device where the sums are tensors; 0 without a vision_config.
    """
    prices = vision_prices(cfg)
    if prices is None:
        return 0
    linear = prices.patch * patch_sum + prices.merged_token * merged_token_sum
    return linear + prices.squared_patch * patch_squared_sum


def vit_flops_from_grid_thw(cfg: Any, grid_thw: torch.Tensor) -> Scalar:
    """FLOPs of training a vision tower on the images and videos of ``grid_thw``, exact for any mix of sizes.

    Arguments and errors are those of ``vision_patch_stats_from_grid_thw``, the result is that of ``vit_flops_from_patch_stats``.
    """
    prices = vision_prices(cfg)
    if prices is None:
        return 0
    patches, squares, merged = vision_patch_stats_from_grid_thw(grid_thw, spatial_merge_size=prices.spatial_merge_size)
    return vit_flops_from_patch_stats(cfg, patch_sum=patches, patch_squared_sum=squares, merged_token_sum=merged)


def vit_flops(cfg: Any, batch_size: int, num_patches: float) -> int | Fraction:
    """FLOPs of training a vision tower on ``batch_size`` images of ``num_patches`` patches each.

    Returns:
        Training FLOPs in the ``megatron`` convention; 0 without a vision_config or for non-positive patches.
    """
    images, patches = exact("batch_size", batch_size), exact("num_patches", num_patches)
    if patches <= 0 or images <= 0:
        return 0
    prices = vision_prices(cfg)
    return 0 if prices is None else prices.of_images(images, patches)


def _whole(value: Fraction | int) -> Any:
    return value.numerator if value.denominator == 1 else value


# ---- packed files ------------------------------------------------------------------------------------


def _packed_data_exists(path: str | None) -> bool:
    """Whether a packed file, or a folder or glob of packed files, exists; with any suffix that ``bridge`` reads."""
    try:
        return bool(path) and bool(shards_of(str(path)))
    except (ConfigError, OSError):
        return False
