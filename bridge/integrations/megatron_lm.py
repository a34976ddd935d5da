"""Megatron-LM: it has no callbacks, so wrapped functions of its loop are the events.

Without a change to a script::

    torchrun ... -m bridge.integrations.megatron_lm pretrain_gpt.py <its flags> --bridge-convention exact

or in your own script, before ``pretrain``::

    attach(ThroughputCallback("exact"))

Either way the functions that ``megatron.training.training`` calls by name are wrapped.  They exist in core 0.16.1 and in 0.20 and
run on all ranks; the order of their arguments differs, so arguments are taken by name.  The order of the calls::

    train
        for each iteration:
            train_step, training_log
            now and then:  evaluate_and_print_results
            checkpoint_and_decide_exit, in it now and then:  save_checkpoint_and_time, in it save_checkpoint
        where it exits early: finishes W&B, SystemExit
    save_checkpoint, where the last iteration was not saved
    evaluate_and_print_results (validation, test), finishes W&B
"""

from __future__ import annotations

import runpy
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from bridge.flops import ConfigError, conventions
from bridge.integrations import sidecar
from bridge.integrations.megatron_bridge import counted
from bridge.integrations.wrapping import Arguments, Call, wrap
from bridge.metrics.host import Host
from bridge.metrics.trackers import Trackers, attached
from bridge.planning.quantities import single
from bridge.training.callbacks import CallbackContext, ThroughputCallback


def attach(throughput: ThroughputCallback | None = None) -> None:
    """Count the batches of ``pretrain`` from now on; rows go to Megatron-LM's W&B run every ``log_interval`` iterations.

    Args:
        throughput: the callback; None: it is made from the flags ``--bridge-*``, which are added to Megatron-LM's parser.

    Raises:
        ImportError: Megatron-LM is not on the path.
    """
    training = _module("training")
    events = _Events(throughput, _module("global_vars"))
    if throughput is None:
        wrap(_module("arguments"), "add_megatron_arguments", lambda call, arguments: _add_flags(call()))
    for name in (name for name in vars(_Events) if not name.startswith("_")):
        wrap(training, name, getattr(events, name))


class _Events:
    """One job's events. Each public method has the name of the loop's function that it is put around."""

    def __init__(self, given: ThroughputCallback | None, variables: ModuleType) -> None:
        self._given, self._variables = given, variables
        self._throughput = given or ThroughputCallback()
        self._context: CallbackContext | None = None
        """The context of the training that runs; None between trainings."""
        self._trained = False
        self._step = 0
        """Completed iterations, including skipped ones."""

    def train(self, call: Call, arguments: Arguments) -> Any:
        args = self._variables.get_args()
        self._throughput = throughput = self._given or _from_flags(args)
        try:
            arguments["forward_step_func"] = counted(arguments["forward_step_func"], throughput)
            self._context = self._open(args, arguments["model"])
            if args.load and args.iteration:
                sidecar.load(throughput, args.load, args.iteration)
            throughput.on_train_start(self._context)
            self._trained = True
        except Exception as error:  # training continues without numbers
            throughput.fail(error)
        try:
            result = call()
        except BaseException:  # after an orderly exit there is no context; else other ranks may not take part
            if self._context is not None:
                throughput.abandon(self._context)
                self._context = None
            raise
        self._end()
        return result

    def _open(self, args: Any, model: Any) -> CallbackContext:
        self._step = args.iteration
        wandb = self._variables.get_wandb_writer()
        host = Host(
            config=Namespace(**{name: value for name, value in vars(args).items() if not name.startswith("bridge_")}),
            step=lambda: self._step,
            log_interval=args.log_interval,
            trackers=Trackers(attached(wandb)),
            model=model,
            train=args,
        )
        return CallbackContext(state=host, model=model)

    def train_step(self, call: Call, arguments: Arguments) -> Any:
        if self._context is None:
            return call()
        self._step = getattr(self._variables.get_args(), "curr_iteration", self._step)
        self._throughput.on_train_step_start(self._context)
        result = call()
        if isinstance(result, tuple) and result[3:4] == (True,):  # a result that could not be reproduced: W&B is closed next
            self._end()
        return result

    def training_log(self, call: Call, arguments: Arguments) -> Any:
        if self._context is not None:
            self._context.skipped_iter = bool(arguments.get("skipped_iter"))
            # Before the loop's own numbers: these commit W&B's row of the previous iteration, which ours may join.
            self._throughput.on_train_step_end(self._context)
        return call()

    def evaluate_and_print_results(self, call: Call, arguments: Arguments) -> Any:
        if self._context is None:
            return call()
        self._throughput.on_eval_start(self._context)
        try:
            return call()
        finally:
            self._throughput.on_eval_end(self._context)

    def save_checkpoint_and_time(self, call: Call, arguments: Arguments) -> Any:
        if self._context is not None:
            self._throughput.on_checkpoint_save(self._context)
        return call()

    def save_checkpoint(self, call: Call, arguments: Arguments) -> Any:
        result = call()
        if self._trained and not arguments.get("non_persistent_ckpt"):
            sidecar.save(self._throughput, self._variables.get_args().save, arguments["iteration"])
        return result

    def checkpoint_and_decide_exit(self, call: Call, arguments: Arguments) -> Any:
        exits = call()
        if exits:  # on all ranks; W&B is closed next, and then SystemExit
            self._end()
        return exits

    def _end(self) -> None:
        if self._context is not None:
            self._throughput.on_train_end(self._context)
            self._context = None


# ---- without a change to the script --------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Run a training script of Megatron-LM with its flags and the flags ``--bridge-*``."""
    sys.argv = list(sys.argv[1:] if argv is None else argv)
    if not sys.argv or not Path(sys.argv[0]).is_file():
        given = sys.argv[0] if sys.argv else "nothing"
        raise SystemExit(
            f"bridge: error: {given} is not a file; give Megatron-LM's pretrain_gpt.py or a script like it, then its flags"
        )
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    attach()
    runpy.run_path(sys.argv[0], run_name="__main__")


def _add_flags(parser: ArgumentParser) -> ArgumentParser:
    group = parser.add_argument_group("bridge", "exact FLOPs and MFU")
    known = sorted(conventions.CONVENTIONS)
    group.add_argument("--bridge-convention", choices=known, default="megatron", help="how FLOPs are counted")
    group.add_argument("--bridge-metrics-file", metavar="FILE", help="JSON lines, one object per log point")
    group.add_argument("--bridge-ledger", metavar="FOLDER", help="keep the life of the job there, restarts included")
    peak = "dense peak of one device, for example 989.4TFLOP/s (default: the table)"
    group.add_argument("--bridge-peak-flops", type=_flops_rate, metavar="FLOP/S", help=peak)
    return parser


def _flops_rate(text: str) -> float:
    try:
        return single(text, "FLOP/s")
    except ConfigError as error:
        raise ArgumentTypeError(str(error)) from None


def _from_flags(args: Any) -> ThroughputCallback:
    return ThroughputCallback(
        args.bridge_convention,
        metrics_file=args.bridge_metrics_file,
        peak_flops=args.bridge_peak_flops,
        ledger=args.bridge_ledger,
    )


def _module(name: str) -> ModuleType:
    try:
        return __import__(f"megatron.training.{name}", fromlist=[name])
    except ModuleNotFoundError as error:
        if error.name not in ("megatron", "megatron.training", f"megatron.training.{name}"):
            raise
        raise ImportError("bridge.integrations.megatron_lm needs Megatron-LM: put its repository on PYTHONPATH") from error


if __name__ == "__main__":
    main()
