"""TRL's fine-tuning: packed, and with a loss on the assistant's words alone."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

trl = pytest.importorskip("trl", reason="pip install trl")

import documented  # noqa: E402
import tiny_llama  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from oracle.counter import count  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from bridge.config import from_huggingface  # noqa: E402
from bridge.config.sources.huggingface_model import from_huggingface_model  # noqa: E402
from bridge.flops import compile_plan  # noqa: E402
from bridge.integrations.transformers_trainer import add_throughput  # noqa: E402

pytestmark = [pytest.mark.all, pytest.mark.usefixtures("no_measurement")]

LETTERS = "abcdefghijklmnopqrstuvwxyz .:"
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """Saved and loaded, as TRL's users have it."""
    tiny_llama.model().save_pretrained(tmp_path / "model")
    return tiny_llama.LlamaForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A letter a token."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *LETTERS])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=CHAT
    )


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "max_steps": 3,
        "logging_steps": 1,
        "bf16": False,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        **more,
    }


def flops(lengths: list[int]) -> int:
    plan = compile_plan(from_huggingface(tiny_llama.model().config), "exact")
    return sum(plan.flops([length]) for length in lengths)


def documents(inputs: Any) -> list[int]:
    """Lengths by a way of their own: where positions begin again, else the mask's ones."""
    if (positions := inputs.get("position_ids")) is not None:
        starts = [number for number, position in enumerate(positions.flatten().tolist()) if position == 0]
        return [end - start for start, end in zip(starts, [*starts[1:], positions.numel()], strict=True)]
    return inputs["attention_mask"].sum(-1).tolist()


def seen_by(trainer: Any) -> list[int]:
    """The lengths of what is trained on, to be filled."""
    lengths: list[int] = []
    computed = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if model.training and torch.is_grad_enabled():
            lengths.extend(documents(inputs))
        return computed(model, inputs, *rest, **named)

    trainer.compute_loss = compute_loss
    return lengths


@pytest.mark.parametrize("packed", [False, True], ids=["assistant only", "packed"])
def test_supervised_fine_tuning(model, tokenizer, tmp_path, packed):
    if packed:
        data = Dataset.from_list([{"text": "ab c." * (1 + number % 5)} for number in range(24)])
        more = {"packing": True, "padding_free": True, "max_length": 32}
    else:
        turns = [[{"role": "user", "content": "a" * number}, {"role": "assistant", "content": "bc"}] for number in range(1, 13)]
        data, more = Dataset.from_list([{"messages": turn} for turn in turns]), {"assistant_only_loss": True, "max_length": 32}
    trainer = trl.SFTTrainer(
        model, args=trl.SFTConfig(**options(tmp_path, **more)), train_dataset=data, processing_class=tokenizer
    )
    lengths = seen_by(trainer)
    throughput = documented.run("TRL", {"trainer": trainer})["throughput"]
    assert len(lengths) > 3
    assert throughput.throughput.latest["throughput/total_flops"] == flops(lengths)
    assert throughput.throughput.latest["throughput/total_tokens"] == sum(lengths)


@pytest.fixture
def compact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused head chooses positions as it does where Triton runs; the kernel stays the processor's."""
    utils = sys.modules["trl.trainer.utils"]
    if not hasattr(utils, "add_fused_lm_head"):
        pytest.skip("this version has no fused head")
    monkeypatch.setattr(utils, "_use_triton", lambda device: True)


@pytest.mark.parametrize("bf16", [False, True])
def test_positions_that_the_fused_head_leaves_out_are_not_counted(model, tokenizer, tmp_path, compact, bf16):
    """One text a batch, so without padding: the model FLOPs are those that run, but for the logits that run again."""
    turns = [[{"role": "user", "content": "a" * number}, {"role": "assistant", "content": "bc"}] for number in range(1, 13)]
    more = {
        "assistant_only_loss": True,
        "max_length": 32,
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": False,
        "bf16": bf16,
    }
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(**options(tmp_path, **more)),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"messages": turn} for turn in turns]),
    )
    learned, executed = [], []
    step = trainer.training_step

    def training_step(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        learned.append(int((inputs["labels"][:, 1:] != -100).sum()))
        results: list[Any] = []
        executed.append(count(lambda: results.append(step(model, inputs, *rest, **named))))
        return results[0]

    trainer.training_step = training_step
    lengths = seen_by(trainer)
    throughput = add_throughput(trainer, convention="executed").throughput
    trainer.train()
    head = 2 * 16 * 97
    assert sum(learned) == 2 * len(lengths) < sum(lengths)
    callback = next(one for one in trainer.callback_handler.callbacks if hasattr(one, "throughput")).throughput
    assert callback is not throughput  # a training begins anew
    assert callback.latest["throughput/total_flops"] == sum(executed) - head * sum(learned)
    whole = compile_plan(from_huggingface(tiny_llama.model().config), "executed")
    left_out = sum(lengths) - sum(learned)
    assert callback.latest["throughput/total_flops"] == sum(whole.flops([length]) for length in lengths) - 3 * head * left_out


class Recorded(getattr(trl, "GRPOTrainer", object)):
    """Writes down what its phases ran on, by ways of its own: texts, masks, and the model's calls."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.trained: list[tuple[int, int]] = []
        self.rolled: list[tuple[int, int]] = []
        self.scored: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        for model, reference in ((self.model, False), (self.ref_model, True)):
            if model is not None:
                model.register_forward_pre_hook(partial(self.see, reference), with_kwargs=True)

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        completions = inputs["completion_mask"].sum(-1)
        self.trained += zip((inputs["prompt_mask"].sum(-1) + completions).tolist(), completions.tolist(), strict=True)
        return super()._compute_loss(model, inputs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        found = super()._generate_and_score_completions(inputs)
        lengths = (found[name].sum(-1).tolist() for name in ("prompt_mask", "completion_mask"))
        self.rolled += zip(*lengths, strict=True)
        return found

    def see(self, reference: bool, module: Any, args: Any, kwargs: Any) -> None:
        if not torch.is_grad_enabled() and kwargs.get("past_key_values") is None:  # generation has a cache
            learned = (kwargs["labels"][:, 1:] != -100).sum(-1).tolist() if "labels" in kwargs else kwargs["attention_mask"][:, 0]
            self.scored[reference] += zip(kwargs["attention_mask"].sum(-1).tolist(), learned, strict=True)


@pytest.mark.parametrize(
    ("times", "beta", "adapters", "leaves_out"),
    [
        pytest.param(1, 0.1, "", False, id="with a reference"),
        pytest.param(2, 0.0, "", False, id="trained on twice"),
        pytest.param(1, 0.1, "new", False, id="new adapters"),
        pytest.param(1, 0.1, "trained before", False, id="adapters trained before"),
        pytest.param(1, 0.1, "", True, id="a head that leaves prompts out"),
        pytest.param(2, 0.0, "", True, id="a head that leaves prompts out, trained on twice"),
    ],
)
def test_phases_of_grpo_are_counted_apart(model, tokenizer, tmp_path, times, beta, adapters, leaves_out, request):
    """A sequence counts by its tokens, and where the head leaves some out, by what it projects."""
    if leaves_out:
        request.getfixturevalue("compact")
    if adapters:
        peft = pytest.importorskip("peft", reason="pip install peft")
        lora = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
        model = peft.get_peft_model(model, lora) if adapters == "trained before" else model
    args = trl.GRPOConfig(
        **options(tmp_path),
        num_generations=2,
        max_completion_length=6,
        beta=beta,
        num_iterations=times,
        gradient_accumulation_steps=2,
        steps_per_generation=2,
    )
    prompts = Dataset.from_list([{"prompt": "ab c"[: 1 + number % 4]} for number in range(16)])
    trainer = Recorded(
        model,
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        args=args,
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=lora if adapters == "new" else None,
    )
    throughput = documented.run("TRL", {"trainer": trainer})["throughput"].throughput
    lengths = [length for length, _ in trainer.trained]
    assert len(lengths) == 3 * 2 * 2  # steps, micro-batches, rows
    policy = compile_plan(from_huggingface_model(trainer.model), "exact")
    base = compile_plan(from_huggingface(tiny_llama.model().config), "exact")
    assert throughput.latest["throughput/total_tokens"] == sum(lengths)
    head = 2 * tiny_llama.CONFIG["hidden_size"] * tiny_llama.CONFIG["vocab_size"]
    left_out = sum(length - learned for length, learned in trainer.trained) if leaves_out else 0
    assert throughput.latest["throughput/total_flops"] == sum(policy.flops([one]) for one in lengths) - 3 * head * left_out

    def forward(plan: Any, length: int, learned: int | None = None) -> int:
        skipped = length - learned if leaves_out and learned is not None else 0
        return plan.evaluate(plan.measure([length]), "forward") - skipped * head

    def generated(prompt: int, completion: int) -> int:
        """The last token is sampled and not run again; of the prompt one position is asked for its logits."""
        return forward(policy, prompt + completion - 1) - (prompt - 1) * head

    # One model is both where it has adapters: the reference is that without them, or with a copy of what they were.
    scored, asked = (trainer.scored[bool(adapters)], trainer.scored[not adapters])
    reference = policy if adapters == "trained before" else base
    counted = {
        phase: sum(row.get(f"throughput/forward_flops/{phase}", 0) for row in trainer.state.log_history if "loss" in row)
        for phase in ("generation", "log_probabilities", "reference")
    }
    assert counted == {
        "generation": sum(generated(*rolled) for rolled in trainer.rolled),
        "log_probabilities": sum(forward(policy, *one) for one in scored),
        "reference": sum(forward(reference, *one) for one in asked),
    }
    assert len(trainer.rolled) == {1: 3 * 4, 2: 2 * 4}[times]  # a batch of four is trained on once or twice
    assert len(scored) == (0 if times == 1 else 2 * 4)
    assert len(asked) == (3 * 4 if beta else 0)
