"""Writes and reads checkpoints on all ranks together; :mod:`bridge.training.checkpoint.folder` describes their files.

Fine-tuning begins with the weights of another checkpoint, its base.  Frozen weights are not written again: the state names
the base by path and content, and a resume reads both.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    determine_main_replica_uniform_distribution,
    distribute_main_replicas_with_precomputed_distribution,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed import checkpoint as torch_checkpoint

from bridge.training.checkpoint.folder import (
    BASE,
    FORMAT,
    LOAD,
    PREFIX,
    STATE,
    Base,
    Checkpoint,
    candidates_in,
    checksums,
    flush,
    make_empty,
    problem_in,
    publish,
    read_state,
)
from bridge.training.checkpoint.pickles import problem_of, weights_only
from bridge.training.errors import RunError
from bridge.training.job.agree import describe, everywhere, from_first, gather
from bridge.training.state import Groups


def save(
    folder: Path,
    step: int,
    tensors: ShardedStateDict,
    state: Mapping[str, Any],
    groups: Groups,
    keep: int | None = None,
) -> Path:
    """Write a checkpoint, on all ranks together; the folder must be on a disk that all of them share.

    Args:
        folder: where checkpoints are kept.
        step: completed steps.
        tensors: from :func:`sharded_state`.
        state: plain data for ``state.json``; that of the first rank is written.
        groups: the layout.
        keep: number of newest checkpoints to keep; None keeps all.

    Raises:
        RunError: on every rank, if any of them could not write. Older checkpoints are unchanged.
    """
    final = folder / f"{PREFIX}{step:07d}"
    partial_path = folder / f".{final.name}.partial"
    try:
        everywhere(partial(_only_first, groups, lambda: make_empty(partial_path)), "cannot begin")
        everywhere(partial(_see, partial_path), "every rank must reach the folder")
        _write_tensors(partial_path, tensors, groups)
        everywhere(partial(_write_random, partial_path, groups), "random number state")
        files = everywhere(partial(checksums, partial_path, groups.rank, groups.world_size), "checksums")
        merged = {name: entry for part in gather(files) for name, entry in part.items()}
        content = {"format": FORMAT, "step": step, "layout": layout_of(groups), "state": dict(state), "files": merged}
        everywhere(partial(_only_first, groups, lambda: publish(partial_path, final, content, keep)), "cannot finish")
    except RunError as error:
        with contextlib.suppress(OSError):
            if groups.rank == 0:
                shutil.rmtree(partial_path, ignore_errors=True)
        raise RunError(
            f"checkpoint.save={str(folder)!r}: step {step} could not be saved: {error}. Free space or choose another "
            "folder; checkpoints saved before are untouched.",
            shared=True,
        ) from error
    return final


def _only_first(groups: Groups, action: Any) -> None:
    if groups.rank == 0:
        action()


def _see(path: Path) -> None:
    if not path.is_dir():
        raise RunError(f"{path} does not exist; multi-node runs need a shared disk")


def _write_tensors(path: Path, tensors: ShardedStateDict, groups: Groups) -> None:
    """megatron-core's ``dist_checkpointing.save`` in the foreground, with errors that reach every rank.

    megatron-core's writer forks processes beside the training process, and if the first rank cannot write, the others wait
    forever.  torch's writer produces the same files and raises on all ranks.
    """
    sharded, common = save_preprocess(tensors)

    def write_common() -> None:
        _write_object(path / "common.pt", common)
        save_config(CheckpointingConfig("torch_dist", 1), str(path))

    everywhere(partial(_only_first, groups, write_common), "common state")
    # Every replica holds all tensors: each writes a share.
    replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
    shares = determine_main_replica_uniform_distribution(sharded, replicas)
    distribute_main_replicas_with_precomputed_distribution(sharded, replicas, shares)
    flat, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
    try:
        torch_checkpoint.save(
            mcore_to_pyt_state_dict(flat, False),
            storage_writer=torch_checkpoint.FileSystemWriter(path),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )
    except torch_checkpoint.CheckpointException as error:  # raised on every rank
        raise RunError(_first_failure(error)) from error


def _first_failure(error: torch_checkpoint.CheckpointException) -> str:
    rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
    return f"{describe(cause)} (rank {rank})"


def _write_random(path: Path, groups: Groups) -> None:
    _write_object(path / f"random_{groups.rank}.pt", random_state())


def _write_object(path: Path, value: Any) -> None:
    """Like torch.save, but keeps the system's error, such as a full disk."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with open(path, "wb") as file:
        file.write(buffer.getbuffer())
        flush(file)


def find(folder: Path, groups: Groups, option: str = LOAD) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint in a folder (or the folder itself, if it is one), verified on all ranks together.

    Returns the checkpoint (None if the folder holds none) and messages about those that were skipped.

    Raises:
        RunError: there are checkpoints, but none is complete.
    """
    candidates, notes = from_first(candidates_in(folder, option) if groups.rank == 0 else None)
    problems: list[str] = []
    for path in candidates:
        content, problem = from_first(read_state(path) if groups.rank == 0 else None)
        if content is not None:
            problem = next((text for text in gather(_problem_in(path, content["files"], groups)) if text), None)
            if problem is None:
                notes += [f"checkpoint {text}; {path.name} is used instead" for text in problems]
                return Checkpoint(path, content["state"], content["layout"], content["files"]), notes
        problems.append(f"{path.name} is damaged ({problem})")
    if problems:
        raise RunError(
            f"{option}={str(folder)!r}: it holds no complete checkpoint: {'; '.join(problems)}. Give another folder"
            + (", or leave checkpoint.load out to start a new run." if option == LOAD else "."),
            shared=True,
        )
    return None, notes


def _problem_in(path: Path, files: Mapping[str, list[int]], groups: Groups) -> str | None:
    unsafe = problem_of(path) if groups.rank == 0 else None
    return unsafe or problem_in(path, files, groups.rank, groups.world_size)


def load(checkpoint: Checkpoint, tensors: ShardedStateDict, option: str = LOAD) -> dict[str, Any]:
    """Read what ``tensors`` describes, in its layout (``is_loading=True``); errors name ``option``.

    Raises:
        RunError: on every rank, if the checkpoint does not fit the model.
    """
    try:
        with weights_only():
            return dist_checkpointing.load(tensors, str(checkpoint.path), validate_access_integrity=False)
    except torch_checkpoint.CheckpointException as error:
        raise _does_not_fit(checkpoint, _first_failure(error), option) from error
    except (KeyError, RuntimeError, UnpicklingError, dist_checkpointing.core.CheckpointingException) as error:
        raise _does_not_fit(checkpoint, describe(error), option) from error


def find_base(folder: Path, groups: Groups, known: Base | None = None) -> tuple[Checkpoint, list[str]]:
    """The checkpoint to fine-tune: the newest in a folder or, on a resume, the one on which the adapters were trained.

    Raises:
        RunError: on every rank, if it does not exist or has changed.
    """
    if known is None:
        found, notes = find(folder, groups, BASE)
        if found is None:
            raise RunError(f"{BASE}={str(folder)!r} holds no checkpoint. Give another folder.", shared=True)
        return found, notes
    places = [folder, folder / Path(known.path).name, Path(known.path)]
    place = from_first(next((path for path in places if (path / STATE).exists()), None) if groups.rank == 0 else None)
    found, notes = find(place, groups, BASE) if place is not None else (None, [])
    if found is None:
        raise RunError(
            f"{BASE}={str(folder)!r}: the base of these adapters, {known.path}, no longer exists, and the adapters need it. "
            "Put it back, or name its new folder.",
            shared=True,
        )
    if found.fingerprint != known.fingerprint:
        raise RunError(
            f"{BASE}={str(folder)!r}: {found.path} is not the base that these adapters were trained on (content "
            f"{found.fingerprint}, expected {known.fingerprint}). Put that base back, name its new folder, or start a new run "
            f"without {LOAD}.",
            shared=True,
        )
    return found, notes


def _does_not_fit(checkpoint: Checkpoint, problem: str, option: str) -> RunError:
    return RunError(
        f"{option}: {checkpoint.path} does not fit this model or optimizer: {problem}. Use the recipe it was saved "
        f"with (its config.yaml), or leave {option} out.",
        shared=True,
    )


def load_random(checkpoint: Checkpoint, groups: Groups) -> str | None:
    """Restore this rank's random number generators; if the layout has changed, they start anew and a message is returned."""
    if dict(checkpoint.layout) != layout_of(groups):
        return "the parallel layout has changed: dropout starts with new random numbers"
    set_random_state(torch.load(checkpoint.path / f"random_{groups.rank}.pt", weights_only=True))
    return None


def random_state() -> dict[str, Any]:
    """The state of all random number generators of this process."""
    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "model_parallel": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the random number generators to a result of :func:`random_state`."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["model_parallel"])


def layout_of(groups: Groups) -> dict[str, int]:
    """The sizes of the parallel dimensions, which determine what each rank holds."""
    return {name: value for name, value in asdict(groups).items() if name.endswith("size")}
