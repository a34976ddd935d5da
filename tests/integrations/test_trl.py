"""TRL's fine-tuning: packed, and with a loss on the assistant's words alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

trl = pytest.importorskip("trl", reason="pip install trl")

import documented  # noqa: E402
import tiny_llama  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from bridge.config import from_huggingface  # noqa: E402
from bridge.flops import compile_plan  # noqa: E402

LETTERS = "abcdefghijklmnopqrstuvwxyz .:"
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


@pytest.fixture(autouse=True)
def no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.metrics.peak.measure_matmul", lambda dtype: (1e15, "measured: in a test"))


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
    return {"output_dir": str(folder), "use_cpu": True, "report_to": [], "max_steps": 3, "logging_steps": 1, "bf16": False,
            "per_device_train_batch_size": 2, "save_strategy": "no", "disable_tqdm": True, **more}  # fmt: skip


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
