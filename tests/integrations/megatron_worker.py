"""One rank of the Megatron loops: Megatron-Bridge's own ``train``, and a loop that calls the forward step as Megatron-LM does.

The model, its wrapper and its optimizer are megatron-core's, on the CPU and gloo.
"""

from __future__ import annotations

import sys
import types
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from typing import Any, Optional

import documented
import torch
from megatron.core import num_microbatches_calculator, rerun_state_machine
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron_fed import EVALUATED, MICRO_BATCHES, MODEL, ROWS, STEPS, lengths

from bridge.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from bridge.training.callbacks import ThroughputCallback
from bridge.training.initialize import Launch, initialize, leave_groups
from bridge.training.model import build_model
from bridge.training.optimizer import build_optimizer, build_scheduler
from bridge.training.step import _connect

#: Stands for Megatron-LM's module of this name, which is there where its repository is on the path.
MEGATRON_TRAINING = types.ModuleType("megatron.training")
MEGATRON_TRAINING.get_args = lambda: MEGATRON_TRAINING.args
MEGATRON_TRAINING.get_wandb_writer = lambda: None
sys.modules["megatron.training"] = MEGATRON_TRAINING


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


def megatron_lm_misread(**layout: int) -> dict[str, Any]:
    """The same decoder beside arguments that describe an encoder and a decoder."""
    encoder = {"model_type": types.SimpleNamespace(name="encoder_and_decoder"), "encoder_num_layers": MODEL["num_layers"]}
    return megatron_lm(encoder, **layout)


def megatron_lm(misread: Optional[dict[str, Any]] = None, **layout: int) -> dict[str, Any]:
    """A loop that does what Megatron-LM's ``pretrain`` does with the forward step; iteration 3 is evaluated."""
    job = Job(**layout)
    args = Namespace(**{**vars(megatron_lm_args()), **(misread or {})})
    MEGATRON_TRAINING.args = args
    data, held_out = job.data(lengths(job.groups.data_rank)), job.data(lengths(job.groups.data_rank))
    forward_backward_func = get_forward_backward_func()

    def run(forward_step_func: Any, data_iterator: Any, *, forward_only: bool) -> None:
        forward_backward_func(
            forward_step_func=forward_step_func,
            data_iterator=data_iterator,
            model=job.model,
            num_microbatches=num_microbatches_calculator.get_num_microbatches(),
            seq_length=args.seq_length,
            micro_batch_size=args.micro_batch_size,
            decoder_seq_length=args.seq_length,
            forward_only=forward_only,
        )

    def pretrain(datasets_provider: Any, model_provider: Any, model_type: Any, forward_step_func: Any) -> None:
        set_training(job.model, True)
        for iteration in range(args.iteration, args.train_iters):
            args.curr_iteration = iteration
            for chunk in job.model:
                chunk.zero_grad_buffer()
            job.optimizer.zero_grad()
            run(forward_step_func, data, forward_only=False)
            job.optimizer.step()
            if iteration + 1 == EVALUATED:
                set_training(job.model, False)
                with torch.no_grad():
                    run(forward_step_func, held_out, forward_only=True)
                set_training(job.model, True)

    names = {
        "pretrain": pretrain,
        "forward_step": forward_step,
        "train_valid_test_datasets_provider": None,
        "model_provider": None,
        "ModelType": types.SimpleNamespace(encoder_or_decoder=1),
    }
    throughput: ThroughputCallback = documented.run("Megatron-LM", names)["throughput"]
    job.end()
    return {"latest": throughput.latest, "verified": throughput.verified.facts}


def set_training(model: list[Any], mode: bool) -> None:
    for chunk in model:
        chunk.train(mode)


def megatron_lm_args() -> Namespace:
    """What Megatron-LM's parser makes of the same model."""
    return Namespace(
        num_layers=MODEL["num_layers"],
        hidden_size=MODEL["hidden_size"],
        ffn_hidden_size=MODEL["ffn_hidden_size"],
        num_attention_heads=MODEL["num_attention_heads"],
        kv_channels=None,
        group_query_attention=True,
        num_query_groups=MODEL["num_query_groups"],
        swiglu=True,
        untie_embeddings_and_output_weights=True,
        vocab_size=None,
        padded_vocab_size=MODEL["vocab_size"],
        make_vocab_size_divisible_by=1,
        seq_length=MODEL["seq_length"],
        num_experts=None,
        bf16=False,
        fp16=False,
        micro_batch_size=ROWS,
        log_interval=2,
        train_iters=STEPS,
        iteration=0,
    )
