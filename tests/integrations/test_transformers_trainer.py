"""The real Trainer on a small Llama: its logs and checkpoints hold what was trained on, and nothing else."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import documented  # noqa: E402
import tiny_llama  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from bridge.config import PeftConfig, from_huggingface  # noqa: E402
from bridge.flops import compile_plan  # noqa: E402
from bridge.integrations.transformers_trainer import ThroughputTrainerCallback, add_throughput  # noqa: E402
from bridge.metrics.goodput import FILE, job_of, read_events  # noqa: E402
from bridge.training.callbacks.throughput import FACTS  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_measurement")

STEPS, ACCUMULATED, ROWS = 7, 3, 2
PEAK = {"convention": "exact", "peak_flops": 1e12}


class Recorded(Trainer):
    """Writes down what it trains on, by a way of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[list[int]] = []

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
        self.seen.append(tiny_llama.lengths(inputs))
        return super().training_step(model, inputs, *rest)


class Reporter(TrainerCallback):
    """Like the Trainer's own reporters (W&B, TensorBoard): in front of the user's callbacks."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.rows.append({"step": state.global_step, **logs})


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults = {
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": ACCUMULATED,
        "max_steps": STEPS,
        "logging_steps": 2,
        "save_steps": 3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **{**defaults, **options})


def flops(batches: list[list[int]], convention: str = "exact") -> int:
    """Length by length."""
    plan = compile_plan(from_huggingface(tiny_llama.model().config), convention)
    return sum(plan.flops([length]) for batch in batches for length in batch)


def totals(rows: list[dict[str, Any]]) -> dict[int, int]:
    """Logged total by step, of the rows that have one."""
    return {row["step"]: row["throughput/total_flops"] for row in rows if "throughput/total_flops" in row}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The documented lines, with evaluations and a reporter."""
    folder = tmp_path_factory.mktemp("trainer")
    args = arguments(folder, eval_strategy="steps", eval_steps=2)
    reporter = Reporter()

    def make(**options: Any) -> Recorded:
        trainer = Recorded(**options)
        trainer.callback_handler.callbacks.insert(1, reporter)
        return trainer

    names = {
        "Trainer": make,
        "model": tiny_llama.model(),
        "args": args,
        "dataset": tiny_llama.texts(40),
        "held_out": tiny_llama.texts(5, seed=1),
        "collator": tiny_llama.collate,
    }
    return {**documented.run("Hugging Face Trainer", names), "folder": folder, "reporter": reporter}


def test_rows_join_the_logs_of_the_loss(trained):
    seen = trained["trainer"].seen
    assert len(seen) == 20  # an epoch of 20 micro-batches: its last step has two
    last = {6: flops(seen[:18]), 7: flops(seen)}
    assert totals(trained["trainer"].state.log_history) == {2: flops(seen[:6]), 4: flops(seen[:12]), **last}
    assert totals(trained["reporter"].rows) == totals(trained["trainer"].state.log_history)
    row = next(row for row in trained["reporter"].rows if row["step"] == 4 and "loss" in row)
    assert "throughput/mfu" in row
    assert "throughput/data_wait_fraction" not in row  # nobody saw how long it waited
    padded = sum(max(batch) * len(batch) for batch in seen[6:12])
    assert row["throughput/padding_fraction"] == 1 - sum(map(sum, seen[6:12])) / padded


def test_evaluations_are_not_counted_or_reported(trained):
    evaluated = [row for row in trained["trainer"].state.log_history if "eval_loss" in row]
    assert [row["step"] for row in evaluated] == [2, 4, 6, 7]
    assert not any(key.startswith("throughput/") for row in evaluated for key in row)


@pytest.mark.parametrize("restores", [False, True], ids=["restored by the callback", "restored by the Trainer"])
def test_totals_go_on_after_a_restart(trained, tmp_path, restores):
    checkpoint = trained["folder"] / "checkpoint-3"
    saved = json.loads((checkpoint / "trainer_state.json").read_text())
    before = saved["stateful_callbacks"]["ThroughputTrainerCallback"]["attributes"]["totals"]
    seen = trained["trainer"].seen
    assert before["total_flops"] == flops(seen[:9])
    args = arguments(tmp_path, save_strategy="no", restore_callback_states_from_checkpoint=restores)
    trainer = Recorded(tiny_llama.model(), args, train_dataset=tiny_llama.texts(40), data_collator=tiny_llama.collate)
    add_throughput(trainer, **PEAK)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.seen == seen[9:]
    assert totals(trainer.state.log_history)[7] == flops(seen)


def test_a_checkpoint_from_before_the_callback_can_be_resumed_and_saved(tmp_path):
    options = {"train_dataset": tiny_llama.texts(40), "data_collator": tiny_llama.collate}
    Recorded(tiny_llama.model(), arguments(tmp_path, max_steps=3), **options).train()
    trainer = Recorded(tiny_llama.model(), arguments(tmp_path, max_steps=4, save_steps=1), **options)
    add_throughput(trainer, **PEAK)
    trainer.train(resume_from_checkpoint=True)
    assert totals(trainer.state.log_history) == {4: flops(trainer.seen)}
    assert (tmp_path / "checkpoint-4").is_dir()


def test_a_training_after_one_that_broke_off_is_counted_once(tmp_path):
    class Breaks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

    model, breaks = tiny_llama.model(), Breaks()
    args = arguments(tmp_path, max_steps=2, save_strategy="no")
    trainer = Recorded(model, args, train_dataset=tiny_llama.texts(40), data_collator=tiny_llama.collate, callbacks=[breaks])
    throughput = add_throughput(trainer, **PEAK)
    hooks = [len(model._forward_pre_hooks), len(model._forward_hooks)]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(breaks)
    trainer.seen.clear()
    trainer.train()
    assert throughput.throughput.latest["throughput/total_flops"] == flops(trainer.seen)
    assert [len(model._forward_pre_hooks), len(model._forward_hooks)] == hooks


class Slow(Recorded):
    """Takes a known time for what is no training."""

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        return super().prediction_step(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.1)
        super()._save_checkpoint(*args, **kwargs)


def test_the_life_of_a_job_that_breaks_off(tmp_path):
    """Evaluated at 2 and 4, saved at 3, broken off in step 6; then from 3 on evaluated at 4, 6 and 7, saved at 6 and 7."""

    class Breaks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    def train(callbacks: list[Any], **options: Any) -> Slow:
        args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=5)
        texts = {"train_dataset": tiny_llama.texts(40), "eval_dataset": tiny_llama.texts(5, seed=1)}
        trainer = Slow(tiny_llama.model(), args, data_collator=tiny_llama.collate, callbacks=callbacks, **texts)
        told = add_throughput(trainer, **PEAK, ledger=str(tmp_path / "life"))
        if callbacks:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        else:
            trainer.train(**options)
            assert told.throughput.job.wall == pytest.approx(job_of(read_events(tmp_path / "life" / FILE)).wall, abs=0.05)
        return trainer

    seen = train([Breaks()]).seen
    resumed = train([], resume_from_checkpoint=str(tmp_path / "checkpoint-3")).seen
    events = read_events(tmp_path / "life" / FILE)
    job = job_of(events)
    assert job.wall == pytest.approx(events[-1]["time"] - events[0]["time"])
    assert (job.steps, job.lost_steps, job.interruptions) == (STEPS, 2, 1)
    assert (job.flops, job.lost_flops) == (flops([*seen[:9], *resumed]), flops(seen[9:15]))
    evaluations = [event["step"] for event in events if event["event"] == "evaluation"]
    assert evaluations == [2, 4, 4, 6, 7]
    assert 5 * 0.05 <= job.seconds["evaluation"] < 5 * 0.05 + 0.5
    assert job.seconds["checkpoint"] >= 3 * 0.1
    assert job.unknown == ("import", "groups", "load", "data")


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_the_total_is_what_torch_counts(tmp_path, adapted):
    """Rows of equal length in a batch, so that nothing is padded: all that runs is counted."""
    model = tiny_llama.model()
    if adapted:
        model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=r".*\.[01]\..*(q_proj|v_proj|down_proj)"))
    args = arguments(tmp_path, max_steps=3, save_strategy="no", train_sampling_strategy="sequential")
    rows = tiny_llama.texts(18, pairs=True)
    throughput = ThroughputTrainerCallback(convention="executed", peak_flops=1e12)
    trainer = Recorded(model, args, train_dataset=rows, data_collator=tiny_llama.collate, callbacks=[throughput])
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    assert trainer.seen == [[len(row["input_ids"])] * 2 for row in rows[::2]]
    assert throughput.throughput.latest["throughput/total_flops"] == counter.get_total_flops()


@pytest.mark.parametrize("bounds", [False, True], ids=["position_ids", "cu_seq_lens_q"])
def test_flattened_batches(tmp_path, bounds):
    """Several texts in one row without a mask, as transformers' own collator makes them."""
    rows = tiny_llama.texts(18)
    args = arguments(tmp_path, max_steps=1, logging_steps=1, save_strategy="no", per_device_train_batch_size=6)
    collator = transformers.DataCollatorWithFlattening()
    packed = []

    def collate(batch: list[dict[str, list[int]]]) -> Any:
        packed.append([len(row["input_ids"]) for row in batch])
        flattened = collator(batch)
        if bounds:
            flattened["cu_seq_lens_q"] = torch.tensor([0, *packed[-1]]).cumsum(0)
        return flattened

    trainer = Trainer(tiny_llama.model(), args, train_dataset=rows, data_collator=collate)
    add_throughput(trainer, **PEAK)
    trainer.train()
    assert sum(map(len, packed)) == len(rows)
    assert totals(trainer.state.log_history) == {1: flops(packed)}


def test_what_is_frozen_otherwise_is_traced(tmp_path, caplog):
    """No reader describes a frozen embedding: the model itself is run without its memory, and counts as what it is."""
    model = tiny_llama.model()
    model.model.embed_tokens.weight.requires_grad_(False)
    args = arguments(tmp_path, max_steps=1, logging_steps=1, save_strategy="no")
    trainer = Recorded(model, args, train_dataset=tiny_llama.texts(6), data_collator=tiny_llama.collate)
    throughput = add_throughput(trainer, convention="exact")
    trainer.train()
    frozen = replace(from_huggingface(model.config), peft=PeftConfig(kind="freeze", freeze=["embedding"]))
    plan = compile_plan(frozen, "exact")
    latest = throughput.throughput.latest
    assert latest["throughput/total_tokens"] == sum(map(sum, trainer.seen))
    assert latest["throughput/total_flops"] == sum(plan.flops([length]) for batch in trainer.seen for length in batch)


def test_several_gpus_in_one_process_are_refused_in_words(tmp_path, caplog):
    args = arguments(tmp_path, max_steps=1, logging_steps=1)
    trainer = Recorded(tiny_llama.model(), args, train_dataset=tiny_llama.texts(6), data_collator=tiny_llama.collate)
    add_throughput(trainer)
    args._n_gpu = 2
    callback = trainer.callback_handler.callbacks[1]
    callback.on_train_begin(args, trainer.state, trainer.control, model=trainer.model)
    assert "start one process per GPU with torchrun" in caplog.text
    args._n_gpu = 0
    assert callback.throughput.latest == {}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("LlamaForCausalLM", []),
        ("LlamaForSequenceClassification", ["output_layer: plan 97 x 16, model has none", "score: plan has none, model 2 x 16"]),
    ],
)
def test_the_built_model_is_held_against_what_is_priced(tmp_path: Path, kind: str, said: list[str], caplog: Any) -> None:
    """Here the configuration of a language model, for itself and for a reward model made of it."""
    config = transformers.LlamaConfig(**tiny_llama.CONFIG, pad_token_id=0)

    def labelled(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        batch = tiny_llama.collate(rows)
        return batch if kind.endswith("CausalLM") else {**batch, "labels": batch["labels"][:, 0].clamp(0, 1)}

    model = getattr(transformers, kind)(config)
    trainer = Trainer(
        model, arguments(tmp_path, max_steps=2, logging_steps=1), data_collator=labelled, train_dataset=tiny_llama.texts(12)
    )
    callback = add_throughput(trainer, from_huggingface(config), **PEAK)
    trainer.train()
    facts = callback._context.user_state[FACTS]
    assert (facts["verified"], facts["verified_details"]) == ("no" if said else "parameters", said)
    assert ("throughput/doubtful" in callback.throughput.latest) == bool(said)
    assert [record.getMessage() for record in caplog.records if "is priced" in record.getMessage()] == (
        ["the model that was built is not the one that is priced, FLOPs and MFU are those of another one: " + "; ".join(said)]
        if said
        else []
    )
