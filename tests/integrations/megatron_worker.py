"""One rank of the Megatron loops: Megatron-Bridge's own ``train``, and Megatron-LM's by its double.

The model, its wrapper and its optimizer are megatron-core's, on the CPU and gloo.
"""

from __future__ import annotations

import importlib.util
import json
import types
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import documented
import torch
from megatron.core import num_microbatches_calculator, rerun_state_machine
from megatron_fed import EVALUATED, MICRO_BATCHES, MODEL, ROWS, STEPS, lengths

from bridge.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from bridge.integrations import megatron_lm as adapter
from bridge.training.callbacks import ThroughputCallback
from bridge.training.engine.initialize import Launch, initialize, leave_groups
from bridge.training.engine.model import build_model
from bridge.training.engine.optimizer import build_optimizer, build_scheduler
from bridge.training.step import _connect

HERE = Path(__file__).parent
PARSED = json.loads((HERE.parent / "data" / "megatron_lm_args.json").read_text())["base"]
#: Under the parser's names, where it leaves other sizes.
SIZES = {
    **MODEL,
    "encoder_num_layers": MODEL["num_layers"],  # as validate_args copies it
    "kv_channels": MODEL["hidden_size"] // MODEL["num_attention_heads"],
    "max_position_embeddings": MODEL["seq_length"],
    "encoder_seq_length": MODEL["seq_length"],
    "group_query_attention": True,
    "swiglu": True,
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "position_embedding_type": "rope",
    "untie_embeddings_and_output_weights": True,
    "vocab_size": None,
    "padded_vocab_size": MODEL["vocab_size"],
    "bf16": False,
    "params_dtype": "torch.float32",
    "micro_batch_size": ROWS,
    "log_interval": 2,
    "train_iters": STEPS,
}
del SIZES["gated_linear_unit"]  # of megatron-core's configuration; the parser says swiglu


def batches(rows: list[list[int]]) -> Iterator[dict[str, torch.Tensor]]:
    """Micro-batches padded to their longest row."""
    for row in rows:
        mask = torch.arange(max(row))[None] < torch.tensor(row)[:, None]
        tokens = torch.randint(MODEL["vocab_size"], mask.shape)
        position_ids = torch.arange(mask.shape[1]).expand_as(tokens)
        yield {"tokens": tokens, "labels": tokens.roll(-1, 1), "attention_mask": mask, "position_ids": position_ids}


def forward_step(data_iterator: Any, model: torch.nn.Module) -> Any:
    """As in pretrain_gpt.py: the next micro-batch through the model, and what makes a loss of the result."""
    batch = next(data_iterator)
    output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return output, partial(loss_function, batch["attention_mask"])


def loss_function(mask: torch.Tensor, output: torch.Tensor) -> Any:
    total, tokens = (output.float() * mask).sum(), mask.sum()
    return total, tokens.int(), {"lm loss": torch.stack([total.detach().clone(), tokens.float()])}


class Job:
    """Model, optimizer and data of one layout."""

    def __init__(self, **layout: int) -> None:
        self.cfg = Config(
            model=ModelConfig(**MODEL),
            parallel=ParallelConfig(**layout),
            train=TrainConfig(train_iters=STEPS, micro_batch_size=ROWS),
            data=DataConfig(batching="padded"),
        )
        self.layout = layout
        self.groups, device = initialize(self.cfg, Launch.from_environment())
        global_batch_size = MICRO_BATCHES * ROWS * self.groups.data_size
        num_microbatches_calculator.unset_num_microbatches_calculator()
        num_microbatches_calculator.init_num_microbatches_calculator(0, None, global_batch_size, ROWS, self.groups.data_size)
        self.model = build_model(self.cfg, device)
        self.optimizer = build_optimizer(self.cfg, self.model)
        self.scheduler = build_scheduler(self.cfg, self.optimizer)
        _connect(self.model[0].config, self.model, self.optimizer)

    def data(self, rows: list[list[int]]) -> Any:
        """One iterator, or one a chunk of the model."""
        iterators = [rerun_state_machine.RerunDataIterator(batches(rows)) for _ in self.model]
        return iterators if len(self.model) > 1 else iterators[0]

    def datasets(self, iteration: int) -> tuple[Any, Any, Any]:
        """Training data from an iteration on, what is held out, and a test set."""
        rows = lengths(self.groups.data_rank)
        return self.data(rows[iteration * MICRO_BATCHES :]), self.data(rows), self.data(rows)

    def end(self) -> None:
        leave_groups()
        rerun_state_machine.destroy_rerun_state_machine()


def megatron_bridge(**layout: int) -> dict[str, Any]:
    """The released ``train``, called as its ``pretrain`` calls it, with an evaluation in the middle."""
    import megatron_bridge_stubs

    megatron_bridge_stubs.install()
    from megatron.bridge.models.gpt_provider import GPTModelProvider
    from megatron.bridge.training import config as upstream
    from megatron.bridge.training import train
    from megatron.bridge.training.callbacks import normalize_callbacks
    from megatron.bridge.training.state import GlobalState
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.transformer_config import TransformerConfig

    train.get_tensor_shapes_adjust_fn_for_distillation = lambda *args, **kwargs: None
    torch.cuda.memory_stats = lambda *args, **kwargs: {}
    job = Job(**layout)
    for chunk in job.model:
        chunk.config.seq_length = MODEL["seq_length"]  # Megatron-Bridge's model configurations have it
    provider = GPTModelProvider(
        **{name: value for name, value in MODEL.items() if name != "make_vocab_size_divisible_by"},
        make_vocab_size_divisible_by=1,
        normalization="RMSNorm",
        add_bias_linear=False,
        share_embeddings_and_output_weights=False,
        pipeline_model_parallel_size=job.groups.pipeline_size,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        pipeline_dtype=torch.float32,
    )
    TransformerConfig.__post_init__(provider)
    config = upstream.ConfigContainer(
        train=upstream.TrainingConfig(
            train_iters=STEPS,
            micro_batch_size=ROWS,
            global_batch_size=MICRO_BATCHES * ROWS * job.groups.data_size,
            eval_interval=EVALUATED,
            eval_iters=1,
        ),
        model=provider,
        optimizer=upstream.OptimizerConfig(lr=1e-3),
        ddp=upstream.DistributedDataParallelConfig(),
        scheduler=upstream.SchedulerConfig(),
        dataset=types.SimpleNamespace(dataloader_type="single"),
        logger=upstream.LoggerConfig(log_interval=2, timing_log_level=0),
        tokenizer=types.SimpleNamespace(),
        checkpoint=upstream.CheckpointConfig(),
    )
    config.data_parallel_size = job.groups.data_size
    state = GlobalState()
    state.cfg = config
    state.train_state.do_valid = True
    replica = job.groups.data_rank

    def pretrain(config: Any, forward_step_func: Any, callbacks: Any) -> None:
        """What is left of it where model and data are there."""
        train.train(
            forward_step_func,
            job.model,
            job.optimizer,
            job.scheduler,
            job.data(lengths(replica)),
            job.data(lengths(replica)),
            state,
            {},
            ProcessGroupCollection.use_mpu_process_groups(),
            callback_manager=normalize_callbacks(callbacks),
        )

    names = {"config": config, "forward_step": forward_step, "pretrain": pretrain}
    throughput = documented.run("Megatron-Bridge", names)["throughput"]
    job.end()
    return {"latest": throughput.latest, "verified": throughput.verified.facts, "steps": state.train_state.step}


def megatron_lm_misread(folder: Path) -> dict[str, Any]:
    """The same decoder beside arguments that describe an encoder and a decoder."""
    encoder = {"model_type": types.SimpleNamespace(name="encoder_and_decoder")}
    return _megatron_lm(Job(), folder / "misread.jsonl", ["--train-iters", "1"], encoder)


def megatron_lm(folder: Path) -> dict[str, Any]:
    """Jobs of Megatron-LM's by its double: what the callback reported of each, its calls in their order."""
    save, steps, wandb = (
        str(folder / "checkpoints"),
        ["--train-iters", str(STEPS)],
        ["--wandb-save-dir", str(folder / "wandb_lm")],
    )
    life = ["--bridge-ledger", str(folder / "life")]
    ends = [*steps, *life, "--save", save, "--save-interval", "2", "--eval-interval", str(EVALUATED), *wandb]
    forgetful = folder / "forgetful"
    forgetful.mkdir(exist_ok=True)
    (forgetful / "latest_checkpointed_iteration.txt").write_text("3")
    pipeline = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    return {
        "exits": _megatron_lm(Job(), folder / "exits.jsonl", [*ends, "--exit-interval", "3", "--tensorboard-dir", save]),
        "goes on": _megatron_lm(Job(), folder / "goes_on.jsonl", [*ends, "--load", save], old=False),
        "forgets": _megatron_lm(Job(), folder / "forgets.jsonl", [*steps, "--load", str(forgetful)]),
        "pipeline": _megatron_lm(Job(**pipeline), folder / "pipeline.jsonl", [*steps, "--iterations-to-skip", "1"], old=False),
    }


def _megatron_lm(
    job: Job, rows: Path, flags: list[str], more: dict[str, Any] | None = None, *, old: bool = True
) -> dict[str, Any]:
    """``python -m bridge.integrations.megatron_lm pretrain_double.py FLAGS``, in this process."""
    spec = importlib.util.spec_from_file_location("megatron.training.training", HERE / "megatron_lm_double.py")
    double = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(double)
    double.OLD, double.JOB = old, job
    job.args = lambda: megatron_lm_args(**job.layout, **(more or {}))
    double.install(double)
    made: list[ThroughputCallback] = []
    kept = adapter._from_flags
    adapter._from_flags = lambda args: made.append(kept(args)) or made[-1]
    options = ["--log-interval", "2", "--bridge-convention", "exact", "--bridge-metrics-file", str(rows)]
    code = None
    try:
        adapter.main([str(HERE / "pretrain_double.py"), *flags, *options])
    except SystemExit as ended:
        code = ended.code
    finally:
        adapter._from_flags = kept
    job.end()
    (throughput,) = made
    return {"latest": throughput.latest, "verified": throughput.verified.facts, "calls": double.CALLS, "code": code}


def megatron_lm_args(**more: Any) -> Namespace:
    """What Megatron-LM's own parser leaves behind, with the sizes of the same model in it."""
    return Namespace(**{**PARSED, **SIZES, **more, "iteration": 0})
