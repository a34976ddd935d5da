"""A training loop without a model: it fires the events and takes the batches, as ours and Megatron-Bridge's do."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bridge.training.callbacks import CallbackContext, CallbackManager

MODEL = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 96,
    "gated_linear_unit": True,
    "vocab_size": 250,
    "make_vocab_size_divisible_by": 1,
    "seq_length": 64,
    "window_size": (7, 0),
    "window_attn_skip_freq": 2,
}


def config(log_interval: int = 4, **model: Any) -> SimpleNamespace:
    """A bare configuration: what a foreign loop offers."""
    return SimpleNamespace(model=SimpleNamespace(**{**MODEL, **model}), logger=SimpleNamespace(log_interval=log_interval))


def state(cfg: Any, step: int = 0, **more: Any) -> SimpleNamespace:
    """A state shaped like Megatron-Bridge's: the step is in ``train_state``."""
    return SimpleNamespace(cfg=cfg, train_state=SimpleNamespace(step=step), **more)


class Loop:
    """Fires events in the order of a real loop.

    Args:
        callbacks: to call.
        run: the state.
        data: an iterator of micro-batches, a list of them, or None.
    """

    def __init__(self, callbacks: Any, run: Any, data: Any) -> None:
        self.manager = CallbackManager(callbacks)
        self.state = run
        self.data = self.manager.observe(data)

    def fire(self, event: str, **fields: Any) -> None:
        context = CallbackContext(state=self.state, user_state=self.manager.user_state, **{"model": [], **fields})
        self.manager.fire(event, context)

    def start(self) -> Loop:
        self.fire("on_train_start")
        return self

    def steps(self, count: int, micro_batches: int = 2, *, skipped: bool = False) -> Loop:
        for _ in range(count):
            self.fire("on_train_step_start")
            for _ in range(micro_batches):
                self.take()
            # Megatron-Bridge counts the step after the event, ours before it: the callback must not care.
            self.fire("on_train_step_end", loss_dict={"lm loss": torch.tensor(2.0)}, grad_norm=1.0, skipped_iter=skipped)
            self.state.train_state.step += 1
        return self

    def take(self) -> None:
        """One micro-batch; under virtual pipelining every chunk takes its own copy."""
        for iterator in self.data if isinstance(self.data, list) else [self.data]:
            if iterator is not None:
                next(iterator)

    def evaluate(self, micro_batches: int) -> Loop:
        self.fire("on_eval_start")
        for _ in range(micro_batches):
            self.take()
        self.fire("on_eval_end", total_loss_dict={"lm loss": torch.tensor(2.5)})
        return self

    def save(self) -> dict[str, Any]:
        self.fire("on_checkpoint_save")
        return self.manager.state_dict()

    def end(self) -> Loop:
        self.fire("on_train_end")
        return self


# ---- data -------------------------------------------------------------------------------------------------------------


def draw(seed: int, count: int, *, longest: int = 64, most: int = 6) -> list[list[int]]:
    """Lengths of the sequences of ``count`` micro-batches."""
    numbers = random.Random(seed)
    return [[numbers.randint(1, longest) for _ in range(numbers.randint(1, most))] for _ in range(count)]


def packed(lengths: list[int]) -> dict[str, Any]:
    """One packed row, padded to a multiple of 8 positions."""
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    return {"tokens": torch.zeros(1, -(-sum(lengths) // 8) * 8), "cu_seqlens": offsets, "max_seqlen": max(lengths)}


def padded(lengths: list[int]) -> dict[str, Any]:
    """Rows padded to the longest, with a mask of real tokens."""
    width = max(lengths)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return {"tokens": torch.zeros(len(lengths), width), "attention_mask": mask}


def fixed(lengths: list[int]) -> dict[str, Any]:
    """Rows of one length, the first one drawn."""
    return {"tokens": torch.zeros(len(lengths), lengths[0]), "attention_mask": None}


def real_lengths(form: Any, lengths: list[int]) -> list[int]:
    """What a batch of this form really holds."""
    return [lengths[0]] * len(lengths) if form is fixed else lengths


def positions(form: Any, lengths: list[int]) -> int:
    """Positions with padding."""
    return form(lengths)["tokens"].numel()


def replica_lengths(case: dict[str, Any], replica: int) -> list[list[int]]:
    """Lengths of all micro-batches of a data-parallel replica in a case: very uneven, some empty.

    The global batch is dealt out to the replicas, so that what is fed does not depend on the layout alone.
    """
    count = case["steps"] * case["micro_batches"]
    lengths = draw(1000 * case["seed"] + replica, count, longest=4 ** (1 + replica % 4), most=1 + 3 * (replica % 2))
    for number in range(count):
        if case.get("empty") and (number + replica) % 3 == 0 or replica in case.get("idle", ()):
            lengths[number] = []
    return lengths


class AllReduces(TorchDispatchMode):
    """Those that this thread starts meanwhile: (numbers, their type) of each. None of them may be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.c10d.allreduce_.default:
            (tensor,), waits = args[0], args[4:5] == (False,)  # what is the default is left out
            assert not waits
            self.seen.append((tensor.numel(), str(tensor.dtype)))
        return func(*args, **(kwargs or {}))
