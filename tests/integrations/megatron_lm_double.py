"""Stands for Megatron-LM's ``megatron.training.training``, which is on no package index: its calls, in their order.

Model, wrapper, optimizer and schedule are megatron-core's; what is left out is what no callback can see.  Functions look each
other up by name, as there; ``OLD`` is the ``pretrain`` of core 0.16, which reads its flags itself, else that of 0.19 and
later, whose scripts do it before.  The W&B run is a real one, offline, on the last rank, closed where Megatron-LM closes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from megatron.core import num_microbatches_calculator
from megatron.core.pipeline_parallel import get_forward_backward_func

OLD = True
ARGS: Any = None
WANDB: Any = None
JOB: Any = None
CALLS: list[str] = []


def get_args() -> Any:
    return ARGS


def get_wandb_writer() -> Any:
    return WANDB


# ---- megatron.training.arguments -----------------------------------------------------------------------------------------


def add_megatron_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    for name in ("--train-iters", "--save-interval", "--eval-interval", "--exit-interval", "--log-interval"):
        parser.add_argument(name, type=int)
    for name in ("--save", "--load", "--wandb-save-dir", "--tensorboard-dir"):
        parser.add_argument(name)
    parser.add_argument("--iterations-to-skip", nargs="+", type=int, default=[])
    return parser


def parse_args(extra_args_provider: Any = None, ignore_unknown_args: bool = False) -> Any:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser = sys.modules["megatron.training.arguments"].add_megatron_arguments(parser)
    if extra_args_provider is not None:
        parser = extra_args_provider(parser)
    return parser.parse_args()


def parse_and_validate_args(extra_args_provider: Any = None, ignore_unknown_args: bool = False, args_defaults: Any = None) -> Any:
    """Flags over what the parser makes of the model."""
    global ARGS
    ARGS = argparse.Namespace(**{**vars(JOB.args()), **vars(parse_args(extra_args_provider, ignore_unknown_args))})
    return ARGS


# ---- the loop --------------------------------------------------------------------------------------------------------------


def pretrain_of_0_16(
    train_valid_test_dataset_provider: Any,
    model_provider: Any,
    model_type: Any,
    forward_step_func: Any,
    process_non_loss_data_func: Any = None,
    extra_args_provider: Any = None,
    args_defaults: Any = None,
) -> None:
    parse_and_validate_args(extra_args_provider, args_defaults=args_defaults)
    _pretrain(train_valid_test_dataset_provider, forward_step_func)


def pretrain_of_0_19(
    cfg_container: Any, train_valid_test_dataset_provider: Any, model_type: Any, forward_step_func: Any, store: Any = None
) -> None:
    _pretrain(train_valid_test_dataset_provider, forward_step_func)


def _pretrain(provider: Any, forward_step_func: Any) -> None:
    global WANDB
    args = get_args()
    if args.wandb_save_dir and torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        import wandb

        WANDB = wandb
        wandb.init(dir=args.wandb_save_dir, mode="offline", settings=wandb.Settings(silent=True, console="off"))
    args.iteration = load_checkpoint() if args.load else 0
    train_data, valid_data, test_data = provider(args.iteration)
    iteration, _ = train(
        forward_step_func, JOB.model, JOB.optimizer, JOB.scheduler, train_data, valid_data, None, JOB.model[0].config, {}, None
    )
    if args.save and iteration % args.save_interval != 0:
        save_checkpoint(iteration, JOB.model, JOB.optimizer, JOB.scheduler, 0, {})
    for name, data in (("validation", valid_data), ("test", test_data)):
        prefix = f"iteration {iteration} on {name} set"
        evaluate_and_print_results(prefix, forward_step_func, data, JOB.model, iteration, None, None, verbose=True)
    if WANDB:
        WANDB.finish()
        CALLS.append("wandb.finish")


def train(
    forward_step_func: Any,
    model: Any,
    optimizer: Any,
    opt_param_scheduler: Any,
    train_data_iterator: Any,
    valid_data_iterator: Any,
    process_non_loss_data_func: Any,
    config: Any,
    checkpointing_context: Any,
    non_loss_data_func: Any,
    inference_model: Any = None,
) -> tuple[int, int]:
    args = get_args()
    for chunk in model:
        chunk.train()
    iteration, should_exit = args.iteration, False
    while iteration < args.train_iters:
        if iteration in args.iterations_to_skip:
            dummy_train_step(train_data_iterator)
            iteration += 1
            continue
        args.curr_iteration = iteration
        loss_dict, skipped_iter, _, should_exit, _, grad_norm, _, _ = train_step(
            forward_step_func, train_data_iterator, model, optimizer, opt_param_scheduler, config, get_forward_backward_func()
        )
        if should_exit:
            break
        iteration += 1
        training_log(loss_dict, {}, 1e-3, iteration, 1.0, False, skipped_iter, grad_norm, None, None, None)
        if args.eval_interval and iteration % args.eval_interval == 0:
            evaluate_and_print_results(
                f"iteration {iteration}", forward_step_func, valid_data_iterator, model, iteration, None, config
            )
        should_exit = checkpoint_and_decide_exit(
            model, optimizer, opt_param_scheduler, iteration, 0, checkpointing_context, train_data_iterator
        )
        if should_exit:
            break
    if should_exit:
        if WANDB:
            WANDB.finish()
            CALLS.append("wandb.finish")
        sys.exit(0)
    return iteration, 0


def train_step(
    forward_step_func: Any,
    data_iterator: Any,
    model: Any,
    optimizer: Any,
    opt_param_scheduler: Any,
    config: Any,
    forward_backward_func: Any,
    iteration: int | None = None,
) -> tuple[Any, ...]:
    for chunk in model:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    _run(forward_backward_func, forward_step_func, data_iterator, forward_only=False)
    successful, grad_norm, _ = optimizer.step()
    return {}, int(not successful), False, False, 0, grad_norm, None, 0


def dummy_train_step(data_iterator: Any) -> None:
    """The batches of a step that is skipped are taken by every chunk and thrown away."""
    for one in data_iterator if isinstance(data_iterator, list) else [data_iterator]:
        for _ in range(num_microbatches_calculator.get_num_microbatches()):
            next(one)


def training_log(
    loss_dict: Any,
    total_loss_dict: Any,
    learning_rate: Any,
    iteration: int,
    loss_scale: Any,
    report_memory_flag: bool,
    skipped_iter: int,
    grad_norm: Any,
    params_norm: Any,
    num_zeros_in_grad: Any,
    max_attention_logit: Any,
    pg_collection: Any = None,
    is_first_iteration: bool = False,
) -> bool:
    CALLS.append(f"log {iteration}")
    if _writes() and iteration % get_args().log_interval == 0:
        WANDB.log({"learning-rate": learning_rate}, iteration)
    return report_memory_flag


def evaluate_and_print_results(
    prefix: str,
    forward_step_func: Any,
    data_iterator: Any,
    model: Any,
    iteration: int,
    process_non_loss_data_func: Any,
    config: Any,
    verbose: bool = False,
    write_to_tensorboard: bool = True,
    non_loss_data_func: Any = None,
) -> None:
    CALLS.append(f"evaluate {prefix}")
    for chunk in model:
        chunk.eval()
    with torch.no_grad():
        _run(get_forward_backward_func(), forward_step_func, data_iterator, forward_only=True)
    for chunk in model:
        chunk.train()
    if _writes():
        WANDB.log({f"{prefix.split(' on ')[-1]} loss": 1.0}, iteration)


def _writes() -> bool:
    """Without a folder for TensorBoard nothing is logged, to W&B neither."""
    return bool(WANDB and get_args().tensorboard_dir)


def save_checkpoint_and_time(
    iteration: int,
    model: Any,
    optimizer: Any,
    opt_param_scheduler: Any,
    num_floating_point_operations_so_far: int,
    checkpointing_context: Any,
    non_persistent_ckpt: bool = False,
    train_data_iterator: Any = None,
) -> None:
    save_checkpoint(
        iteration,
        model,
        optimizer,
        opt_param_scheduler,
        num_floating_point_operations_so_far,
        checkpointing_context,
        non_persistent_ckpt=non_persistent_ckpt,
    )


def save_checkpoint(
    iteration: int,
    model: Any,
    optimizer: Any,
    opt_param_scheduler: Any,
    num_floating_point_operations_so_far: int,
    checkpointing_context: Any = None,
    non_persistent_ckpt: bool = False,
) -> None:
    CALLS.append(f"save {iteration}")
    folder = Path(get_args().save)
    if torch.distributed.get_rank() == 0:
        (folder / f"iter_{iteration:07d}").mkdir(parents=True, exist_ok=True)
        (folder / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    torch.distributed.barrier()


def load_checkpoint() -> int:
    return int((Path(get_args().load) / "latest_checkpointed_iteration.txt").read_text())


def checkpoint_and_decide_exit(
    model: Any,
    optimizer: Any,
    opt_param_scheduler: Any,
    iteration: int,
    num_floating_point_operations_so_far: int,
    checkpointing_context: Any,
    train_data_iterator: Any,
) -> bool:
    args, saved = get_args(), False
    if args.save and args.save_interval and iteration % args.save_interval == 0:
        save_checkpoint_and_time(iteration, model, optimizer, opt_param_scheduler, 0, checkpointing_context)
        saved = True
    if args.exit_interval and iteration % args.exit_interval == 0:
        if args.save and not saved:
            save_checkpoint_and_time(iteration, model, optimizer, opt_param_scheduler, 0, checkpointing_context)
        return True
    return False


def _run(forward_backward_func: Any, forward_step_func: Any, data_iterator: Any, *, forward_only: bool) -> None:
    args = get_args()
    forward_backward_func(
        forward_step_func=forward_step_func,
        data_iterator=data_iterator,
        model=JOB.model,
        num_microbatches=num_microbatches_calculator.get_num_microbatches(),
        seq_length=args.seq_length,
        micro_batch_size=args.micro_batch_size,
        decoder_seq_length=args.seq_length,
        forward_only=forward_only,
    )


# ---- as the package is laid out ------------------------------------------------------------------------------------------


def install(module: ModuleType) -> None:
    """Put a fresh copy of this module where Megatron-LM's is, for one job."""
    package = ModuleType("megatron.training")
    package.__path__ = []  # type: ignore[attr-defined]
    arguments, variables = ModuleType("megatron.training.arguments"), ModuleType("megatron.training.global_vars")
    for name in ("add_megatron_arguments", "parse_args", "parse_and_validate_args"):
        setattr(arguments, name, getattr(module, name))
    for name in ("get_args", "get_wandb_writer"):
        setattr(variables, name, getattr(module, name))
    package.pretrain = module.pretrain_of_0_16 if module.OLD else module.pretrain_of_0_19  # type: ignore[attr-defined]
    package.training, package.arguments, package.global_vars = module, arguments, variables  # type: ignore[attr-defined]
    for name, one in {"": package, ".training": module, ".arguments": arguments, ".global_vars": variables}.items():
        sys.modules[f"megatron.training{name}"] = one
