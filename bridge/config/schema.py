"""The one declaration of every option of a run: its name, type, default, unit and meaning.

Names are megatron-core's wherever it has one.  The classes are plain dataclasses; OmegaConf checks the types
when a recipe is merged into them (see :mod:`bridge.config.loader`), and :mod:`bridge.config.validation` checks what
types cannot express.  ``None`` means "not set"; each docstring says what happens then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bridge.flops.shapes import ModelShape
from bridge.flops.transforms import DEFAULT_TARGETS


def _one_of(*choices: str, default: str | None) -> Any:
    """An option with a fixed set of strings. The loader checks them, because OmegaConf below 2.4 has no ``Literal``."""
    return field(default=default, metadata={"choices": choices})


@dataclass(kw_only=True)
class ModelConfig(ModelShape):
    """The model: everything that is counted (:class:`ModelShape`), and what training also needs.

    ``tensor_model_parallel_size`` is an option of ``parallel``; the loader copies it here, where readers of
    megatron-core's configurations look for it.
    """

    # ---- numerics -------------------------------------------------------------------------------------------------
    bf16: bool | None = None
    """bfloat16 weights and activations. Unset: bfloat16 on CUDA, float32 on a CPU."""
    fp8: str | None = _one_of("e4m3", "hybrid", default=None)
    """FP8 matmuls (needs Transformer Engine). Unset: none."""
    transformer_impl: str | None = _one_of("local", "transformer_engine", default=None)
    """Layer implementation. Unset: Transformer Engine if it is installed, otherwise megatron-core's own."""
    activation_func: str = _one_of("silu", "gelu", "gelu_tanh", "relu", "squared_relu", "quick_gelu", default="silu")
    """Activation of the MLP; with ``gated_linear_unit``, of its gate."""
    glu_linear_offset: float = 0.0
    """Added to the linear half of a gated MLP (GPT-OSS)."""
    activation_func_clamp_value: float | None = None
    """Bound to which the activation's inputs are clamped (GPT-OSS). Unset: not clamped."""
    layernorm_epsilon: float = 1e-5
    """Added to the variance in every norm."""
    layernorm_zero_centered_gamma: bool = False
    """Norm weights are stored minus one (Gemma)."""
    hidden_dropout: float = 0.0
    """Dropout probability on the residual branches."""
    attention_dropout: float = 0.0
    """Dropout probability on the attention weights."""
    init_method_std: float = 0.02
    """Standard deviation of the initial weights."""

    # ---- positions ------------------------------------------------------------------------------------------------
    rotary_base: float = 10000.0
    """RoPE base frequency."""
    rotary_percent: float = 1.0
    """Fraction of a head's channels that RoPE rotates, 0 to 1."""
    rope_scaling: bool = False
    """Llama 3.1's scaling of the RoPE frequencies for long contexts."""
    rope_scaling_factor: float = 8.0
    """Factor of that scaling."""

    # ---- images ---------------------------------------------------------------------------------------------------
    image_token_id: int | None = None
    """Placeholder token for each merged patch of an image. Required to train a model with a vision_config."""

    # ---- experts --------------------------------------------------------------------------------------------------
    moe_token_dispatcher_type: str = _one_of("allgather", "alltoall", "flex", default="alltoall")
    """How tokens are sent to their experts."""
    moe_grouped_gemm: bool = False
    """One grouped matmul for all local experts (needs CUDA)."""
    moe_router_load_balancing_type: str = _one_of("aux_loss", "seq_aux_loss", "global_aux_loss", "none", default="aux_loss")
    """How the router balances the load."""
    moe_expert_capacity_factor: float | None = None
    """Maximum rows per expert, relative to an even distribution; rows above it are dropped. Unset: none are dropped."""
    moe_pad_expert_input_to_capacity: bool = False
    """Pad the input of every expert to its capacity."""
    moe_token_drop_policy: str = _one_of("probs", "position", default="probs")
    """Which tokens are dropped: those with the smallest weights, or the last ones."""
    moe_aux_loss_coeff: float = 0.0
    """Weight of the load-balancing loss; 0 switches it off."""
    moe_z_loss_coeff: float | None = None
    """Weight of the router's z-loss. Unset: none."""
    moe_router_score_function: str = _one_of("softmax", "sigmoid", default="softmax")
    """Function that turns router logits into scores."""
    moe_router_pre_softmax: bool = False
    """Softmax before the top-k choice instead of after it."""
    moe_router_num_groups: int | None = None
    """Groups of experts in group-limited routing (DeepSeek-V3). Unset: no groups."""
    moe_router_group_topk: int | None = None
    """Maximum groups per token in group-limited routing. Unset: no groups."""
    moe_router_topk_scaling_factor: float | None = None
    """Factor on the routed experts' output (DeepSeek-V3). Unset: 1."""

    # ---- multi-token prediction -------------------------------------------------------------------------------------
    mtp_loss_scaling_factor: float = 0.1
    """Weight of the multi-token-prediction losses."""


@dataclass(kw_only=True)
class ParallelConfig:
    """How the model is split over the ranks. The remaining factor is the data-parallel size."""

    tensor_model_parallel_size: int = 1
    """Ranks that share every layer's matrices (TP)."""
    pipeline_model_parallel_size: int = 1
    """Pipeline stages (PP)."""
    virtual_pipeline_model_parallel_size: int | None = None
    """Model chunks per pipeline stage, for the interleaved schedule (VPP). Unset: one chunk."""
    num_layers_in_first_pipeline_stage: int | None = None
    """Layers of the first stage, if the stages are uneven. Unset: as many as in the others."""
    num_layers_in_last_pipeline_stage: int | None = None
    """Layers of the last stage, if the stages are uneven. Unset: as many as in the others."""
    context_parallel_size: int = 1
    """Ranks that share every sequence (CP)."""
    expert_model_parallel_size: int = 1
    """Ranks that share the experts (EP), taken from the data-parallel ranks."""
    expert_tensor_parallel_size: int | None = None
    """Ranks that share one expert's matrices (ETP). Unset: as tensor_model_parallel_size."""
    sequence_parallel: bool = False
    """Split norms and dropouts along the sequence over the tensor-parallel ranks (SP)."""


@dataclass(kw_only=True)
class TrainConfig:
    """Length of the run, batch sizes, and evaluation."""

    train_iters: int = 100
    """Optimizer steps of the whole run."""
    global_batch_size: int = 8
    """Samples per optimizer step, over all ranks."""
    micro_batch_size: int = 1
    """Samples per forward pass of one model replica."""
    rampup_batch_size: list[int] | None = None
    """``[start, increment, samples]``: the global batch grows from ``start`` in increments over that many samples.
    Unset: it has its full size from the first step."""
    seed: int = 1234
    """Seed of the weights and of the data order."""
    eval_interval: int | None = None
    """Steps between evaluations. Unset: none."""
    eval_iters: int = 0
    """Batches per evaluation."""
    skip_iterations: list[int] = field(default_factory=list)
    """Steps (from 1) whose update is skipped; their batches are consumed."""
    distributed_timeout_minutes: float = 10.0
    """Minutes that a rank waits for the others in a collective before the job ends with an error; fractions are allowed.
    Must exceed the time of the slowest checkpoint."""


@dataclass(kw_only=True)
class PackedSequenceSpecs:
    """Packed fine-tuning data, with Megatron-Bridge's names."""

    packed_sequence_size: int | None = None
    """Maximum tokens per packed row. Unset: model.seq_length."""
    packed_train_data_path: str | None = None
    """Packed rows to train on: ``.npy`` or ``.parquet``, a file, a folder of shards or a glob. Unset: the run packs its
    examples at the start."""
    packed_val_data_path: str | None = None
    """Packed rows to evaluate on. Unset: data.eval_fraction of the examples, if the run packs them."""


@dataclass(kw_only=True)
class DataConfig:
    """Real text and how it becomes batches."""

    kind: str = _one_of("text", "instructions", "images", default="text")
    """Kind of samples. ``text``: documents, every token of which is learned. ``instructions``: packed prompts with answers;
    only the answers are learned. ``images``: pictures of lines of text, each followed by its text, which is learned."""
    path: Any = None
    """A text file, a folder, a glob, or a list of these. Unset: the source files of Python's standard library. For
    instructions: ``.jsonl`` files with ``input`` and ``output``, or Python sources, whose functions with a docstring are
    the examples."""
    tokenizer: str = "byte"
    """``byte`` (256 bytes and an end-of-document token) or the path of a ``tokenizers`` JSON file."""
    batching: str = _one_of("padded", "packed", "fixed", default="padded")
    """``padded``: one document per sample, padded to the longest of the micro-batch; ``packed``: whole documents back to
    back, separated in attention; ``fixed``: slices of the concatenated stream."""
    document_separator: str | None = None
    """Text between two documents of one file. Unset: each file is one document (the standard library's sources are split
    at two blank lines, that is, at their top-level definitions)."""
    max_documents: int | None = None
    """Maximum number of documents. Unset: all."""
    min_document_length: int = 2
    """Documents shorter than this many tokens are left out."""
    eval_fraction: float = 0.05
    """Fraction of the documents kept for evaluation, 0 to 1."""
    num_workers: int = 0
    """Processes that prepare batches; 0 means the training process itself."""
    images_per_sample: int = 3
    """Images: maximum per sample; the actual number is random and may be 0."""
    longest_line: int = 24
    """Images: lines of text with more characters are left out."""
    packed_sequence_specs: PackedSequenceSpecs | None = None
    """Packed rows of instructions: their size, and the files that hold them. Unset: rows of model.seq_length."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """The optimizer and its learning-rate schedule."""

    optimizer: str = _one_of("adam", "sgd", default="adam")
    """``adam`` is AdamW."""
    lr: float = 3e-4
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: str = _one_of("constant", "linear", "cosine", "inverse-square-root", "WSD", default="cosine")
    """Shape of the decay."""
    lr_warmup_iters: int = 0
    """Steps of linear warm-up."""
    lr_decay_iters: int | None = None
    """Steps after which min_lr is reached. Unset: train.train_iters."""
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.95
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_grad: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    use_distributed_optimizer: bool = False
    """Shard the optimizer states over the data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients during the backward pass."""
    overlap_param_gather: bool = False
    """Gather parameters during the next forward pass (needs the distributed optimizer)."""


@dataclass(kw_only=True)
class LoggerConfig:
    """Where metrics go, and how often."""

    log_interval: int = 10
    """Steps between log points."""
    quiet: bool = False
    """The console shows warnings and errors alone."""
    dir: str = "runs/${name}"
    """Folder of the run: effective configuration, metrics and the W&B files."""
    metrics_file: str | None = "${logger.dir}/metrics.jsonl"
    """JSON lines, one object per log point. null: none."""
    wandb_project: str | None = "${oc.env:WANDB_PROJECT,bridge}"
    """W&B project. null: no W&B."""
    wandb_entity: str | None = None
    """W&B team or user. Unset: the account's default."""
    wandb_exp_name: str | None = None
    """Name of the W&B run. Unset: the recipe's name."""
    wandb_mode: str | None = _one_of("online", "offline", "disabled", default=None)
    """Unset: online if an account is configured, otherwise offline."""
    wandb_tags: list[str] = field(default_factory=list)
    """Tags of the W&B run."""
    tensorboard_dir: str | None = None
    """Folder of TensorBoard's event files. Unset: no TensorBoard."""
    mlflow_experiment: str | None = None
    """MLflow experiment. Unset: no MLflow."""
    mlflow_run_name: str | None = None
    """Name of the MLflow run. Unset: the recipe's name."""
    mlflow_tracking_uri: str | None = None
    """``https://...`` or ``sqlite:///...``. Unset: MLflow's own setting."""
    mlflow_tags: dict[str, str] = field(default_factory=dict)
    """Tags of the MLflow run."""
    trackers: list[Any] = field(default_factory=list)
    """Further trackers: mappings with ``_target_`` (an import path) and its options, see docs/dashboards.md."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """Saving and resuming."""

    save: str | None = None
    """Folder to save checkpoints in. Unset: none are saved."""
    load: str | None = None
    """Folder to resume from; an empty or missing folder starts a new run. Unset: no resume."""
    save_interval: int | None = None
    """Steps between checkpoints. Unset: only at the end."""
    keep: int | None = None
    """Number of newest checkpoints to keep. Unset: all."""
    pretrained_checkpoint: str | None = None
    """Checkpoint folder of a trained model to fine-tune: a new run starts from its newest weights. Frozen weights
    stay there and are not saved again. Unset: random weights."""


@dataclass(kw_only=True)
class PeftConfig:
    """Parameter-efficient fine-tuning: frozen weights and small trained adapters."""

    kind: str = _one_of("lora", "qlora", "dora", "freeze", default="lora")
    """``lora``: low-rank adapters (arXiv:2106.09685); ``qlora``: the same on weights stored in four bits
    (arXiv:2305.14314; counted and planned, but not trained here); ``dora``: the norms of the adapted weights' rows train too
    (arXiv:2402.09353); ``freeze``: no adapters; the weights that ``freeze`` names do not train."""
    dim: int = 8
    """Rank of the adapters."""
    alpha: float = 16.0
    """Scale of the adapters: alpha / dim."""
    dropout: float = 0.0
    """Dropout probability before the adapters, 0 to 1."""
    target_modules: list[str] = field(default_factory=lambda: list(DEFAULT_TARGETS))
    """Linear layers that get an adapter: megatron-core's names, whole paths, or wildcards such as
    ``decoder.layers.[0-3].*.linear_qkv``. ``linear_q``, ``linear_k``, ``linear_v``, ``linear_fc1_gate`` and ``linear_fc1_up``
    are parts of the fused layers, with their own adapters."""
    freeze: list[str] = field(default_factory=list)
    """Without adapters: modules that do not train, by name, path or wildcard; ``....weight`` or ``....bias`` for one of
    their parameters. Under adapters the model's own weights never train."""
    train: list[str] = field(default_factory=list)
    """What trains although it would be frozen, by the same patterns; ``'*norm'`` for the norms under adapters."""


@dataclass(kw_only=True)
class HardwareConfig:
    """What the run's speed is compared with."""

    device_name: str | None = None
    """Name for the peak table, for example ``NVIDIA H100 80GB HBM3``. Unset: what the device reports."""
    peak_flops: float | None = None
    """Dense peak of one device in FLOP/s; overrides the table. Unset: the table's; on a CPU, a measured one."""


@dataclass(kw_only=True)
class Config:
    """One run."""

    name: str = "run"
    """Names the run and its folder. A recipe that sets none is called as its file."""
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    peft: PeftConfig | None = None
    """Unset: every weight is trained."""
    callbacks: list[Any] = field(default_factory=list)
    """Objects to call at the events of training: mappings with ``_target_`` (an import path) and its arguments."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
