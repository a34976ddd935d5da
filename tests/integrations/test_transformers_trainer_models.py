"""Fine-tuning of what no configuration describes, in the real Trainer: the logged FLOPs are those that torch counts meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import tiny_llama  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count  # noqa: E402
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from bridge.integrations.transformers_trainer import add_throughput  # noqa: E402
from bridge.training.callbacks.throughput import FACTS  # noqa: E402
from tests.tracing.models import GEMMA, IMAGE, WHISPER  # noqa: E402


def _convolution_backward(gradient, x, weight, b, st, pa, di, transposed, op, gr, mask, out_shape=None):
    return conv_flop_count(x, weight, gradient, transposed) * (bool(mask[0]) + bool(mask[1]))


class Counted(TrainerCallback):
    """Torch's count of everything from the first step on."""

    def __init__(self) -> None:
        self.mode: Any = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.mode is None:
            mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
            self.mode = FlopCounterMode(display=False, custom_mapping=mapping)
            self.mode.__enter__()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.mode.__exit__(None, None, None)


class Embedded(Trainer):
    """A loss on the states themselves."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return model(**inputs).last_hidden_state.pow(2).mean()


def llama(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.LlamaConfig(**{**tiny_llama.CONFIG, "pad_token_id": 0, **options}))


def words(labels: Any = None) -> list[dict[str, Any]]:
    rows = [{"input_ids": torch.arange(1, 10), "attention_mask": torch.ones(9, dtype=torch.long)} for _ in range(6)]
    return rows if labels is None else [{**row, "labels": labels(row)} for row in rows]


def texts() -> list[dict[str, Any]]:
    return words(lambda row: row["input_ids"])


def reward() -> tuple[Any, Any]:
    return llama("LlamaForSequenceClassification", num_labels=1), words(lambda row: torch.tensor(0.5))


def embedding() -> tuple[Any, Any]:
    return llama("LlamaModel"), words()


def adapted(config: Any) -> Any:
    return peft.get_peft_model(llama("LlamaForCausalLM"), config)


def prompts() -> tuple[Any, Any]:
    return adapted(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)), texts()


def vera() -> tuple[Any, Any]:
    return adapted(peft.VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "o_proj"], r=4)), texts()


def gemma() -> tuple[Any, Any]:
    """Its tower frozen, adapters on every q_proj and v_proj, those of the tower too."""
    config = transformers.Gemma3Config(**GEMMA)
    model = transformers.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.model.vision_tower.requires_grad_(False)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    ids = torch.tensor([7, 7, *[IMAGE] * 4, 7, 8, 9])
    kinds = (ids == IMAGE).long()
    row = {"input_ids": ids, "labels": ids, "token_type_ids": kinds, "attention_mask": torch.ones_like(ids)}
    return model, [{**row, "pixel_values": torch.ones(3, 32, 32)} for _ in range(6)]


def whisper() -> tuple[Any, Any]:
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER))
    return model, [{"input_features": torch.ones(8, 20), "labels": torch.arange(3, 10)} for _ in range(6)]


@pytest.mark.all(but=["gemma"])
@pytest.mark.parametrize("make", [reward, embedding, prompts, vera, gemma, whisper])
def test_the_trainer_counts_what_runs(make: Any, tmp_path: Path) -> None:
    model, rows = make()
    model.set_attn_implementation("eager")
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=3,
        logging_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
    )
    counted = Counted()
    trainer = (Embedded if make is embedding else Trainer)(model=model, args=args, train_dataset=rows, callbacks=[counted])
    callback = add_throughput(trainer, convention="executed")
    trainer.train()
    logged = [row for row in trainer.state.log_history if "throughput/total_flops" in row]
    assert logged[-1]["throughput/total_flops"] == counted.mode.get_total_flops()
    facts = callback._context.user_state[FACTS]
    assert facts["verified"] == "parameters"
    assert facts["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
