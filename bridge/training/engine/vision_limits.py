"""Checks whether a vision tower can be trained on a layout, before anything is built, and whether a micro-batch is consistent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.flops.components.registry import PROJECTORS
from bridge.flops.elementwise import ACTIVATIONS
from bridge.flops.reading import read, read_layout
from bridge.flops.shapes import ConfigError, VisionShape
from bridge.training.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

    from bridge.config.schema import Config


def check_vision(cfg: Config) -> None:
    """Raise ConfigError for towers and layouts that can be counted but not trained here."""
    vision = read(cfg).vision
    if vision is None:
        return
    model, parallel = cfg.model, cfg.parallel
    projectors = [row.name for row in PROJECTORS.values() if row.trains]
    limits: dict[str, tuple[Any, list[Any]]] = {
        "vision_config.projector_type": (vision.projector_type, projectors),
        "vision_config.class_token": (vision.class_token, [False]),
        "vision_config.linear_bias": (vision.linear_bias, [True]),
        "vision_config.patch_norm": (vision.patch_norm, [False]),
        "mtp_num_layers": (model.mtp_num_layers or None, [None]),
        "audio_config": (model.audio_config, [None]),
    }
    for option, (value, trained) in limits.items():
        if value not in trained:
            raise ConfigError(
                f"model.{option}={value!r} can be counted (bridge flops) but not trained with images; "
                f"training needs {option}={' or '.join(map(repr, trained))}."
            )
    if vision.activation not in ACTIVATIONS:
        raise ConfigError(
            f"model.vision_config.hidden_act={vision.hidden_act!r} is not known; choose one of {', '.join(ACTIVATIONS)}"
        )
    if vision.hidden_size % vision.num_heads or vision.hidden_size // vision.num_heads % 4:  # type: ignore[operator]
        raise ConfigError(
            f"model.vision_config.num_heads={vision.num_heads} must divide vision_config.hidden_size={vision.hidden_size} into "
            "heads whose width is a multiple of 4: half of it turns with the row of a patch, half with its column."
        )
    if int(vision.num_position_embeddings**0.5) ** 2 != vision.num_position_embeddings:
        raise ConfigError(
            f"model.vision_config.num_position_embeddings={vision.num_position_embeddings} must be a square: the table is "
            "stretched over an image. Use 0 for none."
        )
    deep = len(vision.deepstack_visual_indexes)
    if deep:
        first = read_layout(cfg).place(model.num_layers or 0).layers.count(0)
        if deep > first:
            raise ConfigError(
                f"parallel.pipeline_model_parallel_size={parallel.pipeline_model_parallel_size}: the first stage has {first} "
                f"layers, and model.vision_config.deepstack_visual_indexes adds to the first {deep}. Use fewer stages, or set "
                "parallel.num_layers_in_first_pipeline_stage."
            )
        if model.recompute_granularity == "full":
            raise ConfigError(
                "model.recompute_granularity=full would lose what model.vision_config.deepstack_visual_indexes adds inside the "
                "decoder. Use selective, or leave it unset."
            )
    if vision.out_hidden_size != model.hidden_size:
        raise ConfigError(
            f"model.vision_config.out_hidden_size={vision.out_hidden_size} must be model.hidden_size={model.hidden_size}: "
            "merged patches are tokens of the language model. Leave it out."
        )
    size = parallel.tensor_model_parallel_size
    for name in ("num_heads", "mlp_size", "hidden_size"):
        if getattr(vision, name) % size:
            raise ConfigError(
                f"model.vision_config: {name} {getattr(vision, name)} is not divisible by "
                f"parallel.tensor_model_parallel_size={size}; lower that size."
            )
    if parallel.context_parallel_size > 1:
        raise ConfigError(
            f"parallel.context_parallel_size={parallel.context_parallel_size}: images cannot be split over context-parallel "
            "ranks. Use parallel.context_parallel_size=1."
        )
    if parallel.virtual_pipeline_model_parallel_size is not None:
        raise ConfigError(
            f"parallel.virtual_pipeline_model_parallel_size={parallel.virtual_pipeline_model_parallel_size}: with a tower the "
            "first stage is one chunk. Leave it unset."
        )
    if model.image_token_id is None or not 0 <= model.image_token_id < (model.vocab_size or 0):
        raise ConfigError(
            f"model.image_token_id={model.image_token_id} must be a token number below model.vocab_size={model.vocab_size}: it "
            "stands where the merged patches of an image go."
        )


def check_places(tokens: Tensor, grids: Tensor, image_token_id: int, vision: VisionShape) -> None:
    """Raise RunError unless the images of a micro-batch match the placeholders among its tokens.

    Args:
        tokens: [b, s] on the CPU.
        grids: [images, 3] on the CPU: frames, rows and columns, in patches.
        image_token_id: the placeholder.
        vision: the tower.
    """
    places, merge = int((tokens == image_token_id).sum()), vision.spatial_merge_size
    merged = int(grids.prod(dim=1).sum()) // merge**2
    if places != merged or bool((grids[:, 1:] % merge).any()):
        raise RunError(
            f"a micro-batch has {places} tokens model.image_token_id={image_token_id}, and image_grid_thw={grids.tolist()} makes "
            f"{merged} merged patches of {merge} x {merge}. Give each merged patch one token, cut no sample inside an "
            f"image, and make rows and columns multiples of {merge}."
        )
