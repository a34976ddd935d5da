"""A vision tower and a language model on megatron-core: image patches become tokens among those of the text.

The tower has dynamic resolution, as in Qwen2-VL (arXiv:2409.12191) and its successors: an image is a grid of patches of any
height and width, all images of a micro-batch are concatenated in one packed row, and each attends only to itself.  A block of
``spatial_merge_size`` x ``spatial_merge_size`` patches becomes one token of the language model and replaces one placeholder
``model.image_token_id`` among the tokens.  Module paths are those of the plan (``bridge flops --explain``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from bridge.flops.shapes import VisionShape
from bridge.training.engine.activations import FUNCTIONS
from bridge.training.engine.norm import Norm

_LAYERNORM_EPSILON = 1e-6
_ROTARY_BASE = 10000.0


def tower_config(config: TransformerConfig, vision: VisionShape) -> TransformerConfig:
    """megatron-core's configuration of the tower: numerics and tensor parallelism of the language model, sizes of its own."""
    return TransformerConfig(
        num_layers=vision.depth,
        hidden_size=vision.hidden_size,
        ffn_hidden_size=vision.mlp_size,
        num_attention_heads=vision.num_heads,
        gated_linear_unit=vision.gated,
        activation_func=FUNCTIONS[vision.activation],
        normalization="RMSNorm" if vision.gated else "LayerNorm",
        layernorm_epsilon=_LAYERNORM_EPSILON,
        add_bias_linear=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=config.init_method_std,
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        bf16=config.bf16,
        params_dtype=config.params_dtype,
        pipeline_dtype=config.pipeline_dtype,
        autocast_dtype=config.autocast_dtype,
        transformer_impl=config.transformer_impl,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
    )


class PatchMerger(MegatronModule):
    """Maps blocks of neighboring patches to tokens of the language model: norm, m -> m -> out with m = hidden x merge^2."""

    def __init__(self, config: TransformerConfig, vision: VisionShape, *, deep: bool = False) -> None:
        """``deep``: the norm comes after the merge, as in the mergers inside the tower (deepstack)."""
        super().__init__(config=config)
        assert vision.out_hidden_size is not None
        self.merged_size = config.hidden_size * vision.spatial_merge_size**2
        self.deep = deep
        self.norm = Norm(config, self.merged_size if deep else config.hidden_size, eps=_LAYERNORM_EPSILON)
        options = {"config": config, "init_method": config.init_method, "bias": True, "skip_bias_add": False}
        self.linear_fc1 = ColumnParallelLinear(self.merged_size, self.merged_size, gather_output=False, **options)
        self.linear_fc2 = RowParallelLinear(self.merged_size, vision.out_hidden_size, input_is_parallel=True, **options)

    def forward(self, patches: Tensor) -> Tensor:
        """patches [p, 1, hidden], the blocks one after the other -> [p / merge^2, out]."""
        normed = patches if self.deep else self.norm(patches)
        merged = normed.reshape(-1, 1, self.merged_size)
        inner = F.gelu(self.linear_fc1(self.norm(merged) if self.deep else merged)[0])
        return self.linear_fc2(inner)[0].squeeze(1)


class Mergers(MegatronModule):
    """The mergers inside the tower, by number (a ModuleList has no sharded state for checkpoints)."""

    def __init__(self, config: TransformerConfig, vision: VisionShape) -> None:
        super().__init__(config=config)
        for number in range(len(vision.deepstack_visual_indexes)):
            self.add_module(str(number), PatchMerger(config, vision, deep=True))


class VisionModel(MegatronModule):
    """The tower: patch embedding, positions, transformer blocks over the patches of each image, merger."""

    def __init__(self, config: TransformerConfig, vision: VisionShape, layer: ModuleSpec) -> None:
        """``layer``: megatron-core's spec of one block, with bidirectional attention."""
        super().__init__(config=config)
        self.vision = vision
        patch_values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        # Split over the tensor-parallel ranks like every other matrix, and gathered: no rank repeats another's work.
        self.patch_embed = ColumnParallelLinear(
            patch_values,
            config.hidden_size,
            config=config,
            init_method=config.init_method,
            bias=bool(vision.num_position_embeddings),
            gather_output=True,
        )
        self.pos_embed = None
        if vision.num_position_embeddings:
            self.pos_embed = torch.nn.Embedding(vision.num_position_embeddings, config.hidden_size, dtype=config.params_dtype)
            config.init_method(self.pos_embed.weight)
        self.decoder = TransformerBlock(
            config=config,
            spec=TransformerBlockSubmodules(layer_specs=[layer] * config.num_layers),
            post_layer_norm=False,  # the merger has its own norm
        )
        self.deepstack_merger_list = Mergers(config, vision)
        self.merger = PatchMerger(config, vision)

    def forward(self, pixel_values: Tensor, grids: Sequence[Sequence[int]]) -> tuple[Tensor, list[Tensor]]:
        """The images of a micro-batch as tokens of the language model.

        Args:
            pixel_values: [patches, channels x temporal_patch_size x patch_size^2], block by block (see bridge.data.images).
            grids: (frames, rows, columns) in patches of each image.

        Returns:
            [patches / merge^2, out_hidden_size], and one such tensor for each of deepstack_visual_indexes.
        """
        vision, device = self.vision, pixel_values.device
        merge = vision.spatial_merge_size
        host = device if self.config.transformer_impl == "transformer_engine" else torch.device("cpu")
        patches = self.patch_embed(pixel_values.to(self.config.params_dtype).unsqueeze(1))[0]
        if self.pos_embed is not None:
            patches = patches + self._learned_positions(grids).unsqueeze(1)
        places = torch.cat([patch_places(grid, merge) for grid in grids]).to(device)
        angles = rotary_angles(places, self.config.kv_channels)
        whole = packed([rows * columns for frames, rows, columns in grids for _ in range(frames)], host)
        order, windows = None, whole
        if vision.window_patches:
            order, lengths = window_order(grids, merge, vision.window_size // merge // vision.patch_size)
            order, windows = order.to(device), packed(lengths, host)
            patches, angles = (_blocks_in(order, tensor, merge) for tensor in (patches, angles))
        deep: dict[int, Tensor] = {}
        for number, layer in enumerate(self.decoder.layers):
            bounds = whole if number in vision.fullatt_block_indexes else windows
            patches, _ = layer(patches, attention_mask=None, rotary_pos_emb=angles, packed_seq_params=bounds)
            if number in vision.deepstack_visual_indexes:
                index = list(vision.deepstack_visual_indexes).index(number)
                deep[index] = self.deepstack_merger_list.get_submodule(str(index))(patches)
        features = [self.merger(patches), *(deep[index] for index in sorted(deep))]
        if order is not None:
            back = order.argsort()
            features = [feature[back] for feature in features]
        return features[0], features[1:]

    def _learned_positions(self, grids: Sequence[Sequence[int]]) -> Tensor:
        """The table, interpolated bilinearly to each image and in the order of the patches: [p, hidden]."""
        assert self.pos_embed is not None
        side = int(self.vision.num_position_embeddings**0.5)
        table = self.pos_embed.weight.t().view(1, -1, side, side)
        merge = self.vision.spatial_merge_size
        stretched = []
        for frames, rows, columns in grids:
            image = F.interpolate(table, size=(rows, columns), mode="bilinear", align_corners=True)[0]
            blocks = image.view(-1, rows // merge, merge, columns // merge, merge).permute(1, 3, 2, 4, 0)
            stretched.append(blocks.reshape(rows * columns, -1).repeat(frames, 1))
        return torch.cat(stretched)


def patch_places(grid: Sequence[int], merge: int) -> Tensor:
    """Row and column of every patch of an image, block by block: int64 [frames x rows x columns, 2]."""
    frames, rows, columns = grid
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(
        rows // merge, merge, columns // merge, merge, 2
    )
    return places.permute(0, 2, 1, 3, 4).reshape(-1, 2).repeat(frames, 1)


def rotary_angles(places: Tensor, head_size: int) -> Tensor:
    """Rotary angles of a head's channels, [p, 1, 1, head_size]: half of the pairs follow the row, half the column."""
    pairs = head_size // 4
    frequencies = _ROTARY_BASE ** -(torch.arange(pairs, device=places.device) / pairs)
    angles = (places[:, :, None] * frequencies).flatten(1)
    return torch.cat([angles, angles], dim=-1)[:, None, None]


def window_order(grids: Sequence[Sequence[int]], merge: int, side: int) -> tuple[Tensor, list[int]]:
    """The order of the blocks of all images in which the blocks of each window are consecutive.

    Args:
        grids: (frames, rows, columns) in patches of each image.
        merge: patches along a side of a block.
        side: blocks along a side of a window; those at the lower and right edges of an image may be smaller.

    Returns:
        Numbers of the blocks [patches / merge^2], and the patches of each window.
    """
    orders, lengths, start = [], [], 0
    for frames, rows, columns in grids:
        down, across = torch.arange(rows // merge) // side, torch.arange(columns // merge) // side
        window = (down[:, None] * (columns // merge) + across).flatten()
        order = window.argsort(stable=True)
        sizes = (window.unique(return_counts=True)[1] * merge**2).tolist()
        for _ in range(frames):
            orders.append(order + start)
            lengths += sizes
            start += len(order)
    return torch.cat(orders), lengths


def _blocks_in(order: Tensor, patches: Tensor, merge: int) -> Tensor:
    """patches [p, ...] with their blocks in another order."""
    return patches.unflatten(0, (-1, merge**2))[order].flatten(0, 1)


def packed(lengths: Sequence[int], device: torch.device) -> PackedSeqParams:
    """megatron-core's description of consecutive segments with these numbers of patches."""
    bounds = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device, torch.int32)
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths)
    )


class WithoutUse(torch.autograd.Function):
    """The identity, which gives unused parameters gradients of zero.

    Data-parallel replicas wait for every parameter's gradient, and a loss needs something to differentiate, even in a
    micro-batch without images.  Nothing is computed.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


class VisionLanguageModel(GPTModel):
    """megatron-core's GPTModel with a tower on its first pipeline stage."""

    def __init__(
        self,
        *,
        vision: VisionShape,
        vision_config: TransformerConfig,
        vision_layer: ModuleSpec,
        image_token_id: int,
        **options: Any,
    ) -> None:
        """``vision``, ``vision_config``, ``vision_layer``: the tower; ``options``: as for GPTModel."""
        # Images are inserted before the sequence is split over the ranks.
        super().__init__(**options, scatter_embedding_sequence_parallel=False)
        self.image_token_id = image_token_id
        self.vision = vision
        self.vision_model: VisionModel | None = None
        if self.pre_process:
            self.vision_model = VisionModel(vision_config, vision, vision_layer)
            for layer in self.decoder.layers[: len(vision.deepstack_visual_indexes)]:
                layer.register_forward_hook(self._add_deep)
        self._deep: list[Tensor] = []
        """What the next layers of the decoder will add, [s, b, hidden] each (deepstack)."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        padding_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """GPTModel's forward pass, with the images at the places of ``image_token_id``, in order.

        Args:
            input_ids: [b, s], with one ``image_token_id`` for every merged patch.
            position_ids: [b, s].
            attention_mask: None: attention is causal.
            pixel_values: the patches of all images, as :class:`VisionModel` takes them.
            image_grid_thw: [images, 3] on the CPU: frames, rows and columns, in patches, of each image.
            padding_mask: [b, s], True on padding; for experts.
            options: GPTModel's other arguments.
        """
        decoder_input = None
        if self.pre_process:
            decoder_input, *self._deep = self._embed(input_ids, position_ids, pixel_values, image_grid_thw)
            if padding_mask is not None:
                padding_mask = self._cut(padding_mask.t().contiguous()).t()
        return super().forward(
            input_ids, position_ids, attention_mask, decoder_input=decoder_input, padding_mask=padding_mask, **options
        )

    def _embed(
        self, input_ids: Tensor, position_ids: Tensor, pixel_values: Tensor | None, image_grid_thw: Tensor | None
    ) -> list[Tensor]:
        """Embeddings of text and images, and what images add inside the decoder, [s, b, hidden] each."""
        assert self.vision_model is not None
        words = self.embedding(input_ids=input_ids, position_ids=position_ids)
        if pixel_values is None or image_grid_thw is None or not len(image_grid_thw):
            unused = [parameter for parameter in self.vision_model.parameters() if parameter.requires_grad]
            return [self._cut(WithoutUse.apply(words, *unused) if unused and torch.is_grad_enabled() else words)]
        images, deep = self.vision_model(pixel_values, image_grid_thw.tolist())
        places = (input_ids == self.image_token_id).unsqueeze(-1)

        def put(images: Tensor, among: Tensor) -> Tensor:
            return self._cut(among.transpose(0, 1).masked_scatter(places, images.to(among.dtype)).transpose(0, 1).contiguous())

        return [put(images, words), *(put(feature, torch.zeros_like(words)) for feature in deep)]

    def _cut(self, sequence: Tensor) -> Tensor:
        """This tensor-parallel rank's part of [s, ...] under sequence parallelism."""
        return tensor_parallel.scatter_to_sequence_parallel_region(sequence) if self.config.sequence_parallel else sequence

    def _add_deep(self, layer: torch.nn.Module, inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any] | None:
        """Hook of the decoder's first layers: add the features of the tower's inner layers (deepstack)."""
        return (output[0] + self._deep.pop(0), output[1]) if self._deep else None
