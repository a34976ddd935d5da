"""Checkpoints that are whole or not there, and that load on any parallel layout.

::

    <folder>/
        latest                  name of the newest whole checkpoint
        step_0000060/
            __0_0.distcp ...    weights and optimizer, one file a rank, cut by megatron-core's sharding
            .metadata, common.pt, metadata.json
            random_0.pt ...     random number state, one file a rank
            state.json          counters, callbacks, data, layout, and the size and CRC-32 of every other file

A checkpoint is written into a hidden folder, flushed to the disk, and renamed; only then ``latest`` names it.  Whatever
happens in between, what was saved before stays as it was.  On the way back every file is held against ``state.json``;
if one differs, the checkpoint before it is taken, with a message.

Weights and optimizer are stored by megatron-core's distributed checkpointing as parts of whole tensors, so a run may
continue with other tensor, pipeline, data or expert parallel sizes.  Only the random number state belongs to a layout;
it matters to dropout alone.

Fine-tuning begins with the weights of another checkpoint, its base.  Frozen weights are not written again: the state names
the base, by path and by content, and a resume reads both.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Optional

import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedBase,
    ShardedStateDict,
    ShardedTensor,
    ShardedTensorFactory,
)
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
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.utils import unwrap_model
from torch.distributed import checkpoint as torch_checkpoint

from bridge.training.checkpoint_pickles import problem_of, weights_only
from bridge.training.errors import RunError
from bridge.training.job.agree import describe, everywhere, from_first, gather
from bridge.training.peft import is_adapter, reset_magnitudes
from bridge.training.state import Groups

LOAD, BASE = "checkpoint.load", "checkpoint.pretrained_checkpoint"
LATEST = "latest"
STATE = "state.json"
_PREFIX = "step_"
_FORMAT = 1

# The form of the distributed optimizer's state that can be cut anew for other layouts.
_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
}


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    state: Mapping[str, Any]
    """What :func:`save` was given as ``state``."""
    layout: Mapping[str, int]
    """Sizes of the parallel dimensions it was saved with."""
    files: Mapping[str, list[int]] = field(default_factory=dict)
    """Size and CRC-32 of each file beside the state."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def fingerprint(self) -> str:
        """Equal where and only where the files have equal content."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()[:16]

    @property
    def base(self) -> Optional[Base]:
        """What holds the weights that were not written here."""
        saved = self.state.get("base")
        return None if saved is None else Base(**saved)


@dataclass(frozen=True)
class Base:
    """The checkpoint that frozen weights are left to."""

    path: str
    fingerprint: str
    """:attr:`Checkpoint.fingerprint`."""


# ---- what is saved --------------------------------------------------------------------------------------------------


def sharded_state(
    model: list[Any], optimizer: Any, scheduler: Any, *, is_loading: bool = False, adapted: bool = False, frozen: bool = True
) -> ShardedStateDict:
    """Weights, optimizer and learning-rate schedule of this rank, described as parts of the whole.

    ``adapted``: layers may differ in their adapters, and are stored one by one; ``frozen``: with the frozen weights.
    """
    metadata = {**_METADATA, "non_homogeneous_layers": True} if adapted else _METADATA
    state: ShardedStateDict = {}
    for name, chunk in _chunks(model):
        tensors = chunk.sharded_state_dict(metadata=metadata)
        state[name] = {key: tensor for key, tensor in tensors.items() if frozen or not _is_frozen(tensor)}
    _begin(optimizer)
    parts = _parts(optimizer.sharded_state_dict(state, is_loading=is_loading, metadata=metadata))
    state["optimizer_step"] = next((step for step in map(_take_step, parts) if step is not None), None)
    state["optimizer"] = dict(enumerate(_keep_local(parts)))
    state["scheduler"] = scheduler.state_dict()
    return state


def restore(loaded: Mapping[str, Any], model: list[Any], optimizer: Any, scheduler: Any) -> None:
    """Put what :func:`load` returned into this rank's objects."""
    for name, chunk in _chunks(model):
        _fill(chunk, loaded[name], lambda key, tensor: _is_frozen(tensor))
    parts = [loaded["optimizer"][number] for number in sorted(loaded["optimizer"])]
    step = loaded["optimizer_step"]
    for part in parts:
        _give_step(part, step)
    with _step_for_torch_adam(optimizer, step):
        optimizer.load_state_dict(parts[0] if len(parts) == 1 else dict(enumerate(parts)))
    scheduler.load_state_dict(loaded["scheduler"])


def base_weights(model: list[Any]) -> ShardedStateDict:
    """What this rank takes from a base: all weights but the adapters'."""
    return {
        name: {key: tensor for key, tensor in chunk.sharded_state_dict(metadata=_METADATA).items() if not is_adapter(key)}
        for name, chunk in _chunks(model)
    }


def restore_base(loaded: Mapping[str, Any], model: list[Any], optimizer: Any) -> None:
    """Put what :func:`load` returned for :func:`base_weights` into this rank's model."""
    for name, chunk in _chunks(model):
        _fill(chunk, loaded[name], lambda key, tensor: is_adapter(key))
        reset_magnitudes(chunk)
    optimizer.reload_model_params()  # it may keep copies in float32


def has_frozen(model: list[Any]) -> bool:
    """Whether a part of the model is not trained, on any rank."""
    return any(gather(any(not parameter.requires_grad for chunk in model for parameter in chunk.parameters())))


def _is_frozen(tensor: Any) -> bool:
    """Of a part of a sharded state, or a parameter."""
    parameter = tensor.data if isinstance(tensor, (ShardedTensor, ShardedTensorFactory)) else tensor
    return isinstance(parameter, torch.nn.Parameter) and not parameter.requires_grad


def _fill(chunk: Any, state: Mapping[str, Any], may_miss: Callable[[str, Any], bool]) -> None:
    """As ``load_state_dict``, which must find every parameter but those that may be missing."""
    missing, unexpected = chunk.load_state_dict(state, strict=False)
    present = dict(chunk.named_parameters())
    wrong = [key for key in missing if not may_miss(key, present.get(key))] + list(unexpected)
    if wrong:
        raise RunError(f"the checkpoint has no place, or no value, for {', '.join(wrong[:3])}")


# megatron-core chains several optimizers where experts are spread over ranks, and holds their hyperparameters and step
# count by place in the chain.  The moments have names and can be cut anew; the rest is made independent of the chain
# here: hyperparameters are the configuration's, and there is one step count.


def _singles(optimizer: Any) -> list[Any]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _counts_per_parameter(single: Any) -> bool:
    return isinstance(single.optimizer, torch.optim.Adam)  # AdamW is one; those of Apex and TE count per group


def _begin(optimizer: Any) -> None:
    """Give an optimizer that has not made a step yet its empty moments; megatron-core reads the step count beside them."""
    for single in _singles(optimizer):
        single.init_state_fn(single.optimizer, single.config)
        if _counts_per_parameter(single):
            for moments in single.optimizer.state.values():
                moments.setdefault("step", torch.tensor(0.0))


@contextlib.contextmanager
def _step_for_torch_adam(optimizer: Any, step: Optional[float]) -> Iterator[None]:
    """Let megatron-core's distributed optimizer load on top of torch's Adam.

    It leaves the step count out where it cuts the saved moments, then misses it where it copies them; and it gives all
    parameters one and the same counter, which would count once for each of them.
    """
    affected = [s for s in _singles(optimizer) if isinstance(s, DistributedOptimizer) and _counts_per_parameter(s)]
    for single in affected:
        copy = single._set_main_param_and_optimizer_states
        single._set_main_param_and_optimizer_states = lambda parameter, tensors, copy=copy: copy(
            parameter, {**tensors, "step": torch.tensor(step)}
        )
    try:
        yield
    finally:
        for single in affected:
            del single._set_main_param_and_optimizer_states
            for moments in single.optimizer.state.values():
                moments["step"] = moments["step"].clone()


def _parts(state: dict[Any, Any]) -> list[dict[str, Any]]:
    chained = all(isinstance(key, int) for key in state)
    return [state[number] for number in sorted(state)] if chained else [state]


def _torch_state(part: dict[str, Any]) -> dict[str, Any]:
    """The state dict of torch's optimizer inside megatron-core's wrappers."""
    return part.get("optimizer", part)


def _take_step(part: dict[str, Any]) -> Optional[float]:
    inner = _torch_state(part)
    steps = [inner.get("state", {}).pop("common_step", None), *(group.pop("step", None) for group in inner["param_groups"])]
    return next((float(step) for step in steps if step is not None), None)


def _give_step(part: dict[str, Any], step: Optional[float]) -> None:
    if step is None:
        return
    inner = _torch_state(part)
    if "param_state" in part:  # the distributed optimizer keeps the count in its groups, the others beside the moments
        for group in inner["param_groups"]:
            group["step"] = step
    else:
        inner["state"]["common_step"] = torch.tensor(step)


def _keep_local(value: Any) -> Any:
    """The same structure, with everything that is not cut over ranks left to the process that loads."""
    if isinstance(value, dict):
        return {key: _keep_local(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_keep_local(item) for item in value]
    return value if isinstance(value, (ShardedBase, LocalNonpersistentObject)) else LocalNonpersistentObject(value)


def _chunks(model: list[Any]) -> Iterator[tuple[str, Any]]:
    chunks = unwrap_model(model)
    for number, chunk in enumerate(chunks):
        yield "model" if len(chunks) == 1 else f"model{number}", chunk


def random_state() -> dict[str, Any]:
    """Random number generators of this process."""
    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "model_parallel": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Undo the draws since :func:`random_state`."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["model_parallel"])


def layout_of(groups: Groups) -> dict[str, int]:
    """The sizes that decide which rank holds what."""
    return {name: value for name, value in asdict(groups).items() if name.endswith("size")}


# ---- saving ---------------------------------------------------------------------------------------------------------


def save(
    folder: Path,
    step: int,
    tensors: ShardedStateDict,
    state: Mapping[str, Any],
    groups: Groups,
    keep: Optional[int] = None,
) -> Path:
    """Write a checkpoint, on all ranks together; the folder must be on a disk that all of them share.

    Args:
        folder: where checkpoints are kept.
        step: completed steps.
        tensors: from :func:`sharded_state`.
        state: plain data for ``state.json``; the first rank's counts.
        groups: the layout.
        keep: delete all but the newest so many afterwards; None keeps all.

    Raises:
        RunError: on every rank, if any of them could not write. Older checkpoints are untouched.
    """
    final = folder / f"{_PREFIX}{step:07d}"
    partial_path = folder / f".{final.name}.partial"
    try:
        everywhere(partial(_only_first, groups, lambda: _make_empty(partial_path)), "cannot begin")
        everywhere(partial(_see, partial_path), "every rank must reach the folder")
        _write_tensors(partial_path, tensors, groups)
        everywhere(partial(_write_random, partial_path, groups), "random number state")
        files = everywhere(partial(_checksums, partial_path, groups), "checksums")
        merged = {name: entry for part in gather(files) for name, entry in part.items()}
        content = {"format": _FORMAT, "step": step, "layout": layout_of(groups), "state": dict(state), "files": merged}
        everywhere(partial(_only_first, groups, lambda: _publish(partial_path, final, content, keep)), "cannot finish")
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


def _make_empty(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def _see(path: Path) -> None:
    if not path.is_dir():
        raise RunError(f"{path} is not there; multi-node runs need a shared disk")


def _write_tensors(path: Path, tensors: ShardedStateDict, groups: Groups) -> None:
    """megatron-core's ``dist_checkpointing.save`` in the foreground, with errors that reach every rank.

    Its own writer forks processes beside the training process and leaves the other ranks waiting when the first one
    cannot write; torch's writer, on the same files, tells them.
    """
    sharded, common = save_preprocess(tensors)

    def write_common() -> None:
        _write_object(path / "common.pt", common)
        save_config(CheckpointingConfig("torch_dist", 1), str(path))

    everywhere(partial(_only_first, groups, write_common), "common state")
    # Every replica holds all of this: each writes a share.
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
    """As torch.save, which would hide what the system says when a disk is full."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with open(path, "wb") as file:
        file.write(buffer.getbuffer())
        _flush(file)


def _checksums(path: Path, groups: Groups) -> dict[str, list[int]]:
    """Size and CRC-32 of the files this rank wrote; the first rank takes those that bear no rank's number."""
    owners = {f"__{rank}_": rank for rank in range(groups.world_size)}
    mine = {}
    for entry in sorted(path.iterdir()):
        prefix = entry.name[: entry.name.find("_", 2) + 1] if entry.name.startswith("__") else ""
        owner = owners.get(prefix, 0)
        if entry.name.startswith("random_"):
            owner = int(entry.stem.removeprefix("random_"))
        if owner == groups.rank:
            mine[entry.name] = _checksum(entry)
    return mine


def _checksum(path: Path) -> list[int]:
    crc = size = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return [size, crc]


def _publish(partial_path: Path, final: Path, content: Mapping[str, Any], keep: Optional[int]) -> None:
    """First rank: the state file, then the names, each step on the disk before the next one begins."""
    text = json.dumps(content, indent=1)
    with open(partial_path / STATE, "w") as file:
        json.dump({"crc32": zlib.crc32(text.encode()), "checkpoint": content}, file, indent=1)
        _flush(file)
    with open(partial_path / "metadata.json", "rb") as file:  # written by megatron-core
        os.fsync(file.fileno())
    _flush_folder(partial_path)
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():  # a run that starts anew in an old folder
        final.rename(replaced)
    partial_path.rename(final)
    _flush_folder(final.parent)
    _write_latest(final)
    shutil.rmtree(replaced, ignore_errors=True)
    if keep is not None:
        for old in _saved(final.parent)[keep:]:
            if old != final:
                shutil.rmtree(old, ignore_errors=True)


def _write_latest(final: Path) -> None:
    pointer = final.parent / f".{LATEST}.partial"
    with open(pointer, "w") as file:
        file.write(final.name + "\n")
        _flush(file)
    pointer.replace(final.parent / LATEST)
    _flush_folder(final.parent)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """A rename is on the disk once its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- loading --------------------------------------------------------------------------------------------------------


def find(folder: Path, groups: Groups, option: str = LOAD) -> tuple[Optional[Checkpoint], list[str]]:
    """The newest whole checkpoint in a folder (or the folder itself, if it is one), checked on all ranks together.

    Returns the checkpoint, None if there never was one, and messages about what was passed over.

    Raises:
        RunError: there are checkpoints, but none is whole.
    """
    candidates, notes = from_first(_candidates(folder, option) if groups.rank == 0 else None)
    problems: list[str] = []
    for path in candidates:
        content, problem = from_first(_read_state(path) if groups.rank == 0 else None)
        if content is not None:
            problem = next((text for text in gather(_verify(path, content["files"], groups)) if text), None)
            if problem is None:
                notes += [f"checkpoint {text}; {path.name} is used instead" for text in problems]
                return Checkpoint(path, content["state"], content["layout"], content["files"]), notes
        problems.append(f"{path.name} is damaged ({problem})")
    if problems:
        raise RunError(
            f"{option}={str(folder)!r}: no checkpoint in it is whole: {'; '.join(problems)}. Give another folder"
            + (", or leave checkpoint.load out to start a new run." if option == LOAD else "."),
            shared=True,
        )
    return None, notes


def _saved(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((path for path in folder.glob(f"{_PREFIX}*") if path.is_dir()), key=lambda p: p.name, reverse=True)


def _candidates(folder: Path, option: str) -> tuple[list[Path], list[str]]:
    """Checkpoints to try in turn: the one that ``latest`` names, then the older ones."""
    if (folder / STATE).exists():
        return [folder], []
    saved = _saved(folder)
    try:
        name = (folder / LATEST).read_text().strip()
    except OSError:
        note = f"{option}={str(folder)!r} has no file `{LATEST}`; the newest checkpoint is used"
        return saved, [note] if saved else []
    except UnicodeDecodeError:
        name = "?"
    older = [path for path in saved if path.name <= name]
    if older and older[0].name == name:
        return older, []
    note = f"{option}={str(folder)!r}: `{LATEST}` names {name!r}, which is not there; the newest checkpoint is used"
    # A pointer to nothing at all: the empty list would look like a new run.
    return (saved, [note]) if saved else ([folder / (name or "?")], [])


def _read_state(path: Path) -> tuple[Optional[dict[str, Any]], Optional[str]]:
    try:
        sealed = json.loads((path / STATE).read_text())
        content = sealed["checkpoint"]
        if zlib.crc32(json.dumps(content, indent=1).encode()) != sealed["crc32"]:
            return None, f"{STATE} was changed"
        if content["format"] != _FORMAT:
            return None, f"format {content['format']}, expected {_FORMAT}"
        return content, None
    except OSError as error:
        return None, f"{STATE}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return None, f"{STATE} cannot be read"


def _verify(path: Path, files: Mapping[str, list[int]], groups: Groups) -> Optional[str]:
    """What is wrong with this rank's share of the files; None if nothing is."""
    if groups.rank == 0 and (problem := problem_of(path)):
        return problem
    for name in sorted(files)[groups.rank :: groups.world_size]:
        try:
            size = (path / name).stat().st_size
            if size != files[name][0]:
                return f"{name} has {size} bytes instead of {files[name][0]}"
            if _checksum(path / name) != files[name]:
                return f"{name} has other content than was saved"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def load(checkpoint: Checkpoint, tensors: ShardedStateDict, option: str = LOAD) -> dict[str, Any]:
    """Read what ``tensors`` describes, in its layout (``is_loading=True``); ``option`` is what asked for it.

    Raises:
        RunError: on every rank, if the checkpoint is of another model.
    """
    try:
        with weights_only():
            return dist_checkpointing.load(tensors, str(checkpoint.path), validate_access_integrity=False)
    except torch_checkpoint.CheckpointException as error:
        raise _does_not_fit(checkpoint, _first_failure(error), option) from error
    except (KeyError, RuntimeError, UnpicklingError, dist_checkpointing.core.CheckpointingException) as error:
        raise _does_not_fit(checkpoint, describe(error), option) from error


def find_base(folder: Path, groups: Groups, known: Optional[Base] = None) -> tuple[Checkpoint, list[str]]:
    """The checkpoint to fine-tune: the newest in a folder or, on a resume, the one that the adapters were trained on.

    Raises:
        RunError: on every rank, if it is not there, or no longer what it was.
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
            f"{BASE}={str(folder)!r}: the base of these adapters, {known.path}, is not there any more, and they are nothing "
            f"without it. Put it back, or name the folder it is in now.",
            shared=True,
        )
    if found.fingerprint != known.fingerprint:
        raise RunError(
            f"{BASE}={str(folder)!r}: {found.path} is not the base that these adapters were trained on (content "
            f"{found.fingerprint}, expected {known.fingerprint}). Put that one back, name the folder it is in now, or start "
            f"a new run without {LOAD}.",
            shared=True,
        )
    return found, notes


def _does_not_fit(checkpoint: Checkpoint, problem: str, option: str) -> RunError:
    return RunError(
        f"{option}: {checkpoint.path} does not fit this model or optimizer: {problem}. Use the recipe it was saved "
        f"with (its config.yaml), or leave {option} out.",
        shared=True,
    )


def load_random(checkpoint: Checkpoint, groups: Groups) -> Optional[str]:
    """Restore this rank's random numbers; returns a message if the layout has changed and they start anew."""
    if dict(checkpoint.layout) != layout_of(groups):
        return "the parallel layout has changed: dropout starts with new random numbers"
    set_random_state(torch.load(checkpoint.path / f"random_{groups.rank}.pt", weights_only=True))
    return None
