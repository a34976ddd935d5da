"""Everything that determines how many operations a model costs: each field, its default and its meaning, in one place.

Field names are megatron-core's (``TransformerConfig``, ``MLATransformerConfig``, ``GPTModel``); where megatron-core
has no field the name of Megatron-Bridge or of the Hugging Face config is used.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from bridge.flops.errors import ConfigError as ConfigError

#: More layers than this are a mistake; they are counted before anything is built.
MAX_LAYERS = 20_000
#: No size of a model has more digits than this.
_MOST = 10**15


def size(default: int | None = None, *, least: int = 1, off: bool = False, when: str = "") -> Any:
    """A field that holds a whole number.

    Args:
        default: its value where a configuration is silent; None for "not set".
        least: the smallest value it may have.
        off: 0 says the same as None, the feature is off.
        when: the property or field of the shape that says whether it is used at all; what is not used is not checked.
    """
    return field(default=default, metadata={"least": 0 if off else least, "off": off, "when": when})


def entries(kind: type, default: Any = None) -> Any:
    """A field that holds a list of whole numbers, or of words."""
    return field(default=default, metadata={"entries": kind})


def whole(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int.

    Raises:
        ConfigError: it is no whole number, or one that no size can have; the sentence names the field.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or not least <= number <= _MOST:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ConfigError(f"{name}={short(value)} must be {wanted}" + (f" and at most {_MOST}" if number > _MOST else ""))
    return number


def short(value: Any) -> str:
    """A value for a sentence: one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an integer of thousands of digits; a value that holds itself
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def check(shape: Any, prefix: str) -> None:
    """Check every field of a shape against its declaration, and convert integers of other libraries to int.

    Args:
        shape: one of the dataclasses below; a size that says a feature is off becomes None.
        prefix: goes before the field's name in a sentence: ``model.``, ``model.vision_config.``.

    Raises:
        ConfigError: The value of a field is not allowed; the message names the first such field.
    """
    # Switches before sizes: they decide which sizes are used.
    for item in sorted(fields(shape), key=lambda item: "least" in item.metadata):
        value = getattr(shape, item.name)
        if value is not None:
            setattr(shape, item.name, _allowed(shape, item, value, prefix + item.name))


def _allowed(shape: Any, item: Field[Any], value: Any, name: str) -> Any:
    rule = item.metadata
    if "least" in rule:
        if rule["off"] and not isinstance(value, bool) and value == 0:
            return None
        used = not rule["when"] or getattr(shape, rule["when"])
        return whole(name, value, rule["least"]) if used else value
    if "entries" in rule:
        kind = rule["entries"]
        listed = isinstance(value, Collection) and not isinstance(value, (str, Mapping))
        if not listed or not all(isinstance(one, kind) for one in value):
            raise ConfigError(f"{name}={short(value)} must be a list of {'words' if kind is str else 'whole numbers'}")
        return value
    kind = _KINDS.get(str(item.type))
    if kind is bool and isinstance(value, int) and value in (0, 1):
        return bool(value)
    if kind is not None and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
        raise ConfigError(f"{name}={short(value)} must be {_NAMES[kind]}")
    return value


_KINDS: dict[str, Any] = {"bool": bool, "str": str, "str | None": str, "float": (int, float), "float | None": (int, float)}
_NAMES: dict[Any, str] = {bool: "true or false", str: "text", (int, float): "a number"}


@dataclass(kw_only=True)
class ModelShape:
    """Everything about a model that determines how many operations are needed per token.

    Defaults are megatron-core's, except where a default only changes the parameter count and published open models
    agree on another value (``normalization``, ``add_bias_linear``).  ``None`` means "not set".
    """

    # ---- the transformer -------------------------------------------------------------------------
    num_layers: int | None = size()
    """Decoder layers, without the multi-token-prediction layers. Required, unless a hybrid pattern is given."""
    hidden_size: int | None = size()
    """Width of the residual stream. Required."""
    ffn_hidden_size: int | None = size(least=0)
    """Inner width of a dense MLP; 4 x hidden_size when unset."""
    num_attention_heads: int | None = size(off=True)
    """Query heads. Required."""
    num_query_groups: int | None = size(off=True)
    """Key/value heads (GQA); num_attention_heads when unset."""
    kv_channels: int | None = size(off=True)
    """Width of one head; hidden_size // num_attention_heads when unset."""
    v_channels: int | None = size(off=True)
    """Width of a value head where it is not kv_channels (MiMo-V2)."""
    vocab_size: int | None = size()
    """Tokens in the vocabulary, unpadded. Required, unless padded_vocab_size is given."""
    padded_vocab_size: int | None = size(off=True)
    """Rows of the embedding as the training framework built it; unset: padded by the next three fields."""
    make_vocab_size_divisible_by: int = size(128)
    """megatron-core pads the vocabulary to a multiple of this times the tensor-parallel size."""
    should_pad_vocab: bool = True
    """Whether the padding above is applied by the conventions that know it."""
    tensor_model_parallel_size: int = size(1)
    """Only for the padding of the vocabulary."""
    seq_length: int | None = size()
    """Tokens per sequence when no lengths are given."""
    gated_linear_unit: bool = False
    """SwiGLU/GeGLU: the up projection is twice as wide."""
    mtp_num_layers: int | None = size(off=True)
    """Multi-token-prediction depths (DeepSeek-V3)."""
    share_embeddings_and_output_weights: bool = False
    """Tied embeddings: one matrix for both ends."""
    is_causal: bool = True
    """False: every token sees every token (BERT and other encoders)."""

    # ---- facts that only change the parameter count or what trains -------------------------------
    normalization: str = "RMSNorm"
    """``RMSNorm`` (one vector) or ``LayerNorm`` (weight and bias)."""
    layernorm_learned: bool = True
    """False: the norms around the blocks have neither weight nor bias (the first OLMo)."""
    layernorm_placement: str = "pre"
    """Norms ``pre`` each block, ``post`` each block (OLMo 2 and 3), or both: ``sandwich`` (Gemma 2 and later).
    Where the MLP stands beside the attention: ``parallel`` with a norm each (GPT-NeoX), ``shared`` with one for both (Cohere)."""
    add_bias_linear: bool = False
    """Biases on all linear layers."""
    add_mlp_bias: bool = False
    """Biases on the MLPs' linear layers, the experts' and the router's among them."""
    add_qkv_bias: bool = False
    """A bias on linear_qkv."""
    add_output_bias: bool = False
    """A bias on the output layer (Phi)."""
    unpriced_parameters: int = size(0, least=0)
    """Entries of weights whose work has no terms: of a tower that is not read, of a head whose output nothing uses."""
    add_proj_bias: bool = False
    """A bias on linear_proj (Hugging Face's attention_bias is this one and the one above)."""
    qk_layernorm: Any = False
    """True: a norm over each query and key head; ``full``: over the whole projection (OLMo 2)."""
    softmax_type: str = "vanilla"
    """``learnable``: one attention sink per head (GPT-OSS); ``learnable_local``: in layers with a window alone (MiMo-V2)."""
    activation_func: Any = None
    """Activation of the MLPs, by name or as torch's function; silu where they are gated, else gelu, when unset."""
    moe_router_score_function: str = "softmax"
    """What turns router logits into scores: ``softmax`` or ``sigmoid``."""
    rotary_percent: float = 1.0
    """Fraction of a head's channels that RoPE turns."""
    position_embedding_type: str = "rope"
    """``learned_absolute`` adds max_position_embeddings x hidden_size parameters."""
    max_position_embeddings: int | None = size(off=True)
    """Rows of a learned position table."""

    # ---- attention shape -------------------------------------------------------------------------
    attention_output_gate: bool = False
    """A gate as wide as the queries on the attention output (Qwen3-Next)."""
    window_size: Any = None
    """Sliding window: W tokens, or (left, right) for left + right + 1; (-1, -1) is no window."""
    window_attn_skip_freq: Any = None
    """int N: every Nth layer is global; list: 1 is local; unset: all layers are local."""
    interleaved_attn_pattern: Any = entries(int)
    """(local, global): numbers of local layers and of global layers after them, repeated (Gemma 2 and 3)."""
    attention_chunk_size: int | None = size(off=True)
    """Llama 4: tokens attend inside chunks, except in layers that no_rope_freq leaves without RoPE."""
    no_rope_freq: Any = None
    """int N: every Nth layer has no RoPE; list: 1 is without."""
    global_kv_channels: int | None = size(off=True)
    """Head width of the global layers where it differs (Gemma 4)."""
    global_num_query_groups: int | None = size(off=True)
    """Key/value heads of the global layers where they differ (Gemma 4)."""
    global_attention_k_eq_v: bool = False
    """Global layers project keys once and use them as values (Gemma 4)."""
    attention_k_eq_v: bool = False
    """All layers do so (MaxText's share_kv_projections)."""
    attention_output_size: int | None = size(off=True)
    """Attention ends in this width, the experts work in it, and a separate projection leads back (MaxText's custom Qwen3)."""
    num_kv_shared_layers: int | None = size(off=True)
    """Number of last layers that reuse the keys and values of an earlier layer (Gemma 3n, Gemma 4 E2B/E4B)."""
    use_double_wide_mlp: bool = False
    """The layers that share keys and values have an MLP twice as wide (Gemma 4 E2B)."""
    hidden_size_per_layer_input: int | None = size(off=True)
    """Width of the per-layer embeddings (Gemma 3n, Gemma 4 E2B/E4B)."""
    vocab_size_per_layer_input: int | None = size(off=True)
    """Rows of the per-layer embedding table; vocab_size when unset."""

    # ---- multi-head latent attention -------------------------------------------------------------
    multi_latent_attention: bool = False
    """MLA (DeepSeek-V2 and later)."""
    q_lora_rank: int | None = size(off=True)
    """Rank of the query compression; unset: queries are projected directly."""
    kv_lora_rank: int = size(512, when="has_latent_keys")
    """Rank of the key/value compression."""
    qk_head_dim: int = size(128, least=0, when="has_latents")
    """Width of a query/key head without its RoPE part."""
    qk_pos_emb_head_dim: int = size(64, least=0, when="has_latents")
    """Width of the RoPE part."""
    v_head_dim: int = size(128, when="has_latents")
    """Width of a value head."""

    # ---- experts ---------------------------------------------------------------------------------
    num_moe_experts: int | None = size(off=True)
    """Routed experts of a MoE layer; unset: a dense model."""
    moe_layer_freq: Any = 1
    """int N: layer i (from 0) is MoE when i % N == 0; a list holds 1 for MoE, one entry per layer."""
    moe_router_topk: int = size(2, when="has_experts")
    """Experts per token."""
    moe_ffn_hidden_size: int | None = size(off=True, when="has_experts")
    """Inner width of one routed expert; ffn_hidden_size when unset."""
    moe_shared_expert_intermediate_size: int | None = size(least=0, when="has_experts")
    """Inner width of the shared experts together."""
    moe_shared_expert_gate: bool = False
    """A sigmoid gate (hidden_size x 1) on the shared experts."""
    moe_latent_size: int | None = size(off=True, when="has_experts")
    """Routed experts work in a latent space of this width (Nemotron 3)."""
    moe_branch_norms: bool = False
    """Separate norms before and after the routed experts and after the shared ones, and scales on the router (Gemma 4)."""
    moe_router_enable_expert_bias: bool = False
    """A correction bias per expert (DeepSeek-V3)."""

    # ---- sparse and linear attention -------------------------------------------------------------
    experimental_attention_variant: str | None = None
    """The name of a mixer: ``gdn`` (old name ``gated_delta_net``), ``gdn2``, ``dsa``, ``dsv4_hybrid`` (``registry.VARIANTS``)."""
    linear_attention_freq: Any = None
    """int N: layer i (from 1) is attention when i % N == 0, else linear; list: 1 is linear."""
    linear_conv_kernel_dim: int = size(4, when="has_delta_net")
    linear_key_head_dim: int = size(128, when="has_delta_net")
    linear_value_head_dim: int = size(128, when="has_delta_net")
    linear_num_key_heads: int = size(16, when="has_delta_net")
    linear_num_value_heads: int = size(32, when="has_delta_net")
    kimi_kda_layers: Any = entries(int)
    """Numbers (from 1) of the layers with Kimi delta attention; the others are MLA."""
    kimi_linear_num_heads: int | None = size(off=True)
    kimi_linear_head_dim: int | None = size(off=True)
    kimi_linear_low_rank_gate: bool = False
    """The output gate goes through kimi_linear_head_dim channels (Hugging Face's Kimi Linear), not straight."""
    kimi_linear_conv_kernel_size: int = size(4, when="kimi_kda_layers")
    short_conv_layers: Any = entries(int)
    """A list with 1 for each layer that is a gated short convolution, 0 for attention (LFM2)."""
    short_conv_kernel: int = size(3, when="short_conv_layers")
    """Taps of that convolution."""
    short_conv_bias: bool = False
    """Biases on it and on its two projections."""
    selective_scan_layers: Any = entries(int)
    """A list with 1 for each layer that is a first-generation Mamba, 0 for attention (Jamba)."""
    selective_scan_inner_size: int | None = size(when="selective_scan_layers")
    """Width inside."""
    selective_scan_state_dim: int = size(16, when="selective_scan_layers")
    """State entries per channel."""
    selective_scan_dt_rank: int | None = size(when="selective_scan_layers")
    """Width that the step sizes are projected from."""
    selective_scan_kernel: int = size(4, when="selective_scan_layers")
    """Taps of its convolution."""
    selective_scan_conv_bias: bool = True
    """A bias on the convolution."""
    selective_scan_proj_bias: bool = False
    """Biases on the projections into the block and out of it."""
    selective_scan_norms: bool = False
    """Norms on the step sizes' latent and on both matrices of the state (Jamba)."""
    dsa_indexer_n_heads: int | None = None
    dsa_indexer_head_dim: int | None = None
    dsa_indexer_topk: int | None = None
    dsa_indexer_loss_coeff: float | None = None
    dsa_indexer_use_sparse_loss: bool = False
    dsa_indexer_topk_freq: int = size(1)
    dsa_indexer_skip_topk_offset: int = size(0, least=0)
    dsa_indexer_layers: Any = entries(int)
    """A list with 1 for each layer that chooses keys itself, 0 where it takes an earlier layer's choice (GLM-5.2); unset: as
    the two fields above say."""
    csa_window_size: int = size(128)
    csa_compress_ratios: Any = entries(int)
    """One of 0, 4 or 128 for each layer, MTP layers included (DeepSeek-V4)."""
    o_groups: int | None = size(off=True)
    o_lora_rank: int | None = size(off=True)
    hc_mult: int | None = size(off=True)
    """Copies of the residual stream (hyper-connections)."""

    block_configs: Any = None
    """Blocks that differ from layer to layer (Nemotron Super and Ultra): one mapping per layer, with ``attention`` and ``ffn``,
    each with ``no_op``, ``replace_with_linear`` and a size (see ``heterogeneous``)."""
    # ---- n-gram memory (Engram) --------------------------------------------------------------------
    engram_layers: Any = entries(int)
    """Layers (from 0) that look their last tokens up in tables of hashed n-grams (arXiv:2601.07372)."""
    engram_max_ngram_size: int = size(3, least=2)
    """n-grams of 2 to this many tokens."""
    engram_num_heads: int = size(8)
    """Tables for each n."""
    engram_head_dim: int = size(1280)
    """Width of a table's rows."""
    engram_kernel_size: int = size(4)
    """Taps of the convolution over what was found."""
    engram_table_rows: Any = entries(int)
    """Rows of all tables of a layer together, one entry for each of engram_layers."""

    # ---- hybrid models ---------------------------------------------------------------------------
    is_hybrid_model: bool = False
    hybrid_layer_pattern: str | None = None
    """One symbol per layer: ``M`` Mamba, ``*`` attention, ``+`` MLA, ``-`` MLP, ``E`` MoE, ``G`` GDN, ``D`` DeepSeek sparse
    attention, ``P`` attention and Mamba in parallel.

    ``|`` ends a pipeline stage, ``/`` starts a multi-token-prediction depth. Unset: made from the two ratios below.
    """
    hybrid_mla_symbol: str = "*"
    """What MLA is called in patterns: ``*`` with multi_latent_attention (megatron-core 0.16), or ``+`` alone (later). A pattern
    with a ``+`` in it means the latter."""
    mtp_hybrid_override_pattern: str | None = None
    """Symbols of each of the mtp_num_layers depths, where hybrid_layer_pattern has no ``/``."""
    hybrid_attention_ratio: float = 0.0
    hybrid_mlp_ratio: float = 0.0
    mamba_state_dim: int = size(128, when="is_hybrid")
    mamba_head_dim: int = size(64, when="is_hybrid")
    mamba_num_groups: int = size(8, when="is_hybrid")
    mamba_num_heads: int | None = size(off=True)
    gated_delta_product: bool = False
    """Every ``M`` of a pattern is a gated delta product layer of Mamba's sizes (Megatron-LM's gdp_stack_spec)."""
    gdp_num_householder: int = size(3, when="gated_delta_product")
    """Householder steps per token of such a layer."""
    mamba_rms_norm: bool = True
    """A norm on what the scan returns (Falcon-H1 can do without)."""

    # ---- encoders -----------------------------------------------------------------------------------
    encoder_num_layers: int | None = size(off=True)
    """Layers of an encoder the decoder cross-attends to (T5, Whisper); unset: a decoder alone."""
    encoder_ffn_hidden_size: int | None = size(off=True)
    """Inner width of the encoder's MLPs; ffn_hidden_size when unset."""
    encoder_num_attention_heads: int | None = size(off=True)
    """Heads of the encoder; num_attention_heads when unset."""
    relative_attention_num_buckets: int | None = size(off=True)
    """Rows of T5's table of relative positions (one column per head), one table for the encoder and one for the decoder."""
    add_key_bias: bool = True
    """False: keys have no bias where queries and values have one (Whisper)."""
    post_layer_norm: bool = True
    """A norm after the last layer; False in BERT, whose layers end with one."""
    embedding_layernorm: bool = False
    """A norm on the embeddings (BERT)."""
    num_tokentypes: int = size(0, least=0)
    """Rows of a table of token types (BERT)."""
    bert_lm_head: bool = False
    """A dense layer and a norm before the output layer, which has a bias (BERT)."""
    diffusion_config: Any = None
    """A diffusion transformer (DiT, Flux) in place of a language model, with diffusers' names."""
    audio_config: Any = None
    """A Whisper-style audio encoder, with Hugging Face's names."""
    byte_latent_config: Any = None
    """A byte-latent transformer in place of a language model, with Hugging Face's names (``blt``)."""

    # ---- other modalities ------------------------------------------------------------------------
    vision_config: Any = None
    """The vision tower, with Hugging Face's field names."""

    # ---- recomputation ---------------------------------------------------------------------------
    recompute_granularity: str | None = None
    """``full`` or ``selective``."""
    recompute_method: str | None = None
    """``uniform`` or ``block`` (full recomputation)."""
    recompute_num_layers: int | None = size(off=True)
    recompute_modules: Any = entries(str)
    """Selective recomputation: ``core_attn``, ``mlp``, ``moe``, ``shared_experts``, ``mla_up_proj``, ..."""
    freeze_language_model: bool = False
    """Train around a fixed language model (Megatron-Bridge's vision-language providers)."""
    freeze_vision_model: bool = False
    """The vision tower is frozen."""
    freeze_vision_projection: bool = False
    """The projector between tower and language model is frozen."""

    # ---- how the framework's own formula counts it ---------------------------------------------------
    formula: Any = None
    """Fields as the framework's own formula takes them, where that is not what runs; ``mtp`` holds those of its MTP depths.
    Set by readers, for conventions with ``own_formula``."""

    # ---- derived ---------------------------------------------------------------------------------
    @property
    def activation(self) -> str:
        """The name of the activation."""
        if self.activation_func is None:
            return "silu" if self.gated_linear_unit else "gelu"
        return str(getattr(self.activation_func, "__name__", self.activation_func))

    @property
    def head_size(self) -> int:
        return self.kv_channels or self.hidden_size // self.num_attention_heads  # type: ignore[operator]

    @property
    def key_value_heads(self) -> int:
        return self.num_query_groups or self.num_attention_heads  # type: ignore[return-value]

    @property
    def ffn_size(self) -> int:
        return 4 * self.hidden_size if self.ffn_hidden_size is None else self.ffn_hidden_size  # type: ignore[operator]

    @property
    def built_vocab_size(self) -> int:
        """Rows of the embedding: padded_vocab_size, or the vocabulary rounded up as megatron-core pads it."""
        if self.padded_vocab_size is not None:
            return self.padded_vocab_size
        if self.vocab_size is None or not self.should_pad_vocab:
            return self.vocab_size  # type: ignore[return-value]  # read() has checked it
        multiple = self.make_vocab_size_divisible_by * self.tensor_model_parallel_size
        return -(-self.vocab_size // multiple) * multiple

    @property
    def window(self) -> int:
        """Tokens of the sliding window, the query included; 0 for none."""
        size = self.window_size
        if size is None:
            return 0
        if isinstance(size, int):
            return max(size, 0)
        left, right = size
        # megatron-core writes "unlimited" as -1; a right side of 0 or -1 both mean "up to the query" in a causal model.
        return 0 if left < 0 else left + max(right, 0) + 1

    @property
    def has_latents(self) -> bool:
        """Latent attention somewhere: MLA, sparse attention on it, or Kimi's delta attention between layers of it."""
        return bool(
            self.multi_latent_attention or self.kimi_kda_layers or self.experimental_attention_variant in ("dsa", "dsv4_hybrid")
        )

    @property
    def has_latent_keys(self) -> bool:
        """Keys and values come from a latent; DeepSeek-V4's queries alone do."""
        return self.has_latents and self.experimental_attention_variant != "dsv4_hybrid"

    @property
    def has_experts(self) -> bool:
        return bool(self.num_moe_experts)

    @property
    def has_delta_net(self) -> bool:
        return self.linear_attention_freq is not None or "G" in (self.hybrid_layer_pattern or "")

    @property
    def is_hybrid(self) -> bool:
        return bool(self.is_hybrid_model or self.hybrid_layer_pattern)


@dataclass(kw_only=True)
class VisionShape:
    """A vision tower, with the names of Hugging Face's vision configs."""

    depth: int | None = size()
    """Layers."""
    num_heads: int = 16
    """Heads of its attention; they share the width, so that only the operation ledger tells them apart."""
    hidden_size: int | None = size()
    """Width of the tower."""
    intermediate_size: int | None = size(off=True)
    """Inner width of the MLP; mlp_ratio x hidden_size when unset."""
    mlp_ratio: int = size(4)
    out_hidden_size: int | None = size()
    """Width the merger projects to; the language model's when unset."""
    spatial_merge_size: int = size(2)
    """Patches merged into one token along each side."""
    patch_size: int = size(14)
    temporal_patch_size: int = size(2)
    in_channels: int = size(3)
    hidden_act: str = ""
    """``silu`` means a gated MLP (Qwen2.5-VL)."""
    window_size: int = size(0, least=0)
    """Side of an attention window in pixels (Qwen2.5-VL); 0: whole images."""
    fullatt_block_indexes: Any = entries(int, ())
    """Layers that see the whole image where the others have windows."""
    deepstack_visual_indexes: Any = entries(int, ())
    """Layers whose output goes through its own merger (Qwen3-VL)."""
    num_position_embeddings: int = size(0, least=0)
    """Rows of a learned position table (Qwen3-VL, SigLIP, CLIP)."""
    class_token: bool = False
    """A token beside the patches that attends like them (CLIP, Llama 4)."""
    projector_type: str = "merger"
    """``merger`` (Qwen), ``pooled_linear`` (Gemma 3), ``mlp`` (LLaVA), ``tile_mlp`` (LLaVA-OneVision), ``linear`` (PaliGemma,
    Idefics 3), ``normed_mlp`` (InternVL), ``gated_merger`` (GLM-4.1V), ``pixel_shuffle`` (Llama 4) or ``none``."""
    projector_bias: bool = True
    """Biases in ``linear`` and ``tile_mlp``."""
    layer_scale: bool = False
    """A learned scale on what each block adds; the class token then stands beside patches with a bias, without a norm of its
    own, and without a norm after the last layer (InternVL)."""
    qkv_bias: bool = True
    """Biases on queries, keys and values."""
    linear_bias: bool = True
    """Biases on what follows the attention and in the MLP."""
    patch_norm: bool = False
    """A norm of patches before their positions are added (GLM-4.1V)."""
    projector_input_dim: int | None = size()
    projector_output_dim: int | None = size()
    """Widths inside Llama 4's pixel-shuffle MLP; intermediate_size goes in. The first is ``gated_merger``'s inner width, too."""
    vision_output_dim: int | None = size()
    """What Llama 4's projector reads; projector_output_dim when unset."""

    @property
    def heads(self) -> int:
        """Heads of its attention; one where the number given does not divide the width."""
        given, width = self.num_heads, self.hidden_size or 0
        return given if isinstance(given, int) and given > 0 and width % given == 0 else 1

    @property
    def gated(self) -> bool:
        return self.hidden_act == "silu"

    @property
    def activation(self) -> str:
        """The name of the activation, as language models have it."""
        return {"": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}.get(self.hidden_act, self.hidden_act)

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size or self.mlp_ratio * self.hidden_size  # type: ignore[operator]

    @property
    def window_patches(self) -> int:
        """Patches of one attention window: windows are aligned to merged patches."""
        side = self.window_size // self.spatial_merge_size // self.patch_size * self.spatial_merge_size
        return side * side


@dataclass(kw_only=True)
class DiffusionShape:
    """A diffusion transformer, with the names of diffusers' configs; sequence lengths are latent tokens of the images."""

    num_layers: int | None = size()
    """Blocks; in Flux those that keep text and image apart."""
    num_single_layers: int = size(0, least=0)
    """Flux's later blocks, where text and image are one sequence."""
    num_attention_heads: int | None = size()
    attention_head_dim: int | None = size()
    """Width of a head; heads x width is the model's."""
    mlp_ratio: int = size(4)
    in_channels: int | None = size()
    """Channels of the latents (Flux: of a packed latent token)."""
    out_channels: int | None = size(off=True)
    """Channels of the prediction; in_channels when unset."""
    patch_size: int = size(1)
    """Side of a patch of latents."""
    joint_attention_dim: int = size(0, least=0)
    """Width of the text encoder's states (Flux); 0: no text."""
    pooled_projection_dim: int = size(0, least=0)
    """Width of the pooled text vector that joins the conditioning (Flux)."""
    guidance_embeds: bool = False
    """The guidance scale is embedded like the time step (Flux dev)."""
    num_embeds_ada_norm: int = size(0, least=0)
    """Classes (DiT). diffusers gives each block its own embedder; the last layer uses the first block's again."""


@dataclass(kw_only=True)
class AudioShape:
    """A Whisper-style audio encoder, with the names of Hugging Face's configs."""

    d_model: int | None = size()
    """Width."""
    encoder_layers: int | None = size()
    encoder_attention_heads: int | None = size()
    encoder_ffn_dim: int | None = size()
    """Inner width of the MLPs."""
    num_mel_bins: int = size(80)
    """Channels of the spectrogram."""
    max_source_positions: int = size(1500, least=0)
    """Rows of the position table."""
    pooling: int = size(2)
    """Positions averaged into one token of the language model (Qwen2-Audio)."""
    output_dim: int | None = size()
    """Width it is projected to; the language model's when unset."""


@dataclass(kw_only=True)
class StackShape:
    """One of the transformers inside; the names are Hugging Face's."""

    num_hidden_layers: int = size()
    hidden_size: int = size()
    num_attention_heads: int = size()
    num_key_value_heads: int | None = size(off=True)
    intermediate_size: int | None = size(off=True)
    """Inner width of the MLP; 8/3 x hidden_size when unset."""


@dataclass(kw_only=True)
class ByteLatentShape:
    """Everything about a byte-latent transformer that decides what a byte costs.  Defaults: the published 1B model."""

    encoder_config: StackShape = field(
        default_factory=lambda: StackShape(num_hidden_layers=1, hidden_size=1024, num_attention_heads=16)
    )
    global_config: StackShape = field(
        default_factory=lambda: StackShape(num_hidden_layers=25, hidden_size=2048, num_attention_heads=16, intermediate_size=5632)
    )
    decoder_config: StackShape = field(
        default_factory=lambda: StackShape(num_hidden_layers=9, hidden_size=1024, num_attention_heads=16, intermediate_size=2816)
    )
    patcher_config: StackShape | None = field(
        default_factory=lambda: StackShape(num_hidden_layers=14, hidden_size=768, num_attention_heads=12, intermediate_size=2048)
    )
    """The entropy model; None where patches come from elsewhere (fixed strides, spaces)."""
    vocab_size: int = size(260)
    """Bytes and four special symbols."""
    cross_attn_k: int = size(2)
    """Vectors of the local width that stand for one patch."""
    encoder_cross_attn_all_layers: bool = False
    decoder_cross_attn_all_layers: bool = True
    local_attention_window_len: int | None = size(512, off=True)
    """Window of the local models in bytes; None for none."""
    patcher_sliding_window: int | None = size(512, off=True)
    encoder_hash_byte_group_size: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    """Lengths of the byte n-grams that are hashed into tables."""
    encoder_hash_byte_group_vocab: int = size(500002)
    encoder_hash_byte_group_nb_functions: int = size(1)

    @property
    def hash_tables(self) -> int:
        return len(self.encoder_hash_byte_group_size) * self.encoder_hash_byte_group_nb_functions

    @property
    def stacks(self) -> dict[str, StackShape]:
        """The transformers inside, by name."""
        named = {name: getattr(self, name) for name in ("encoder_config", "global_config", "decoder_config", "patcher_config")}
        return {name: stack for name, stack in named.items() if stack is not None}
