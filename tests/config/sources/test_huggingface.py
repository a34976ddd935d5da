"""from_huggingface: whatever of Hugging Face's it is given, it is the same model; and it imports nothing that is not needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from tests.config.sources.published import QWEN3


def test_accepts_mappings_objects_files_and_folders(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(QWEN3))
    expected = from_huggingface(QWEN3)
    for source in (file, str(file), tmp_path, str(tmp_path)):
        assert from_huggingface(source) == expected
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert compile_plan(from_huggingface(config)).flops([99]) == compile_plan(expected).flops([99])
    nested = transformers.Gemma3Config(text_config={"num_hidden_layers": 7})
    nested.save_pretrained(tmp_path)
    assert from_huggingface(tmp_path) == from_huggingface(nested)
    assert compile_plan(from_huggingface({"model_type": "gemma3", "text_config": {"num_hidden_layers": 7}})).flops(
        [2000]
    ) == compile_plan(from_huggingface(nested)).flops([2000])


def test_a_live_model_is_read_with_what_it_recomputes() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    config = transformers.LlamaConfig(**sizes)
    model = transformers.LlamaForCausalLM(config)
    found = from_huggingface(model)
    assert (found.source, found.model_type, found.model.recompute_granularity) == ("read", "llama", None)
    assert compile_plan(found).flops([7]) == compile_plan(from_huggingface(config)).flops([7])
    model.gradient_checkpointing_enable()
    assert from_huggingface(model).model.recompute_granularity == "full"
    assert from_huggingface(model.config).model.recompute_granularity is None  # a configuration does not say


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = f"""
import sys
from bridge.config import from_huggingface
from bridge.flops import compile_plan
compile_plan(from_huggingface({QWEN3!r})).flops([8])
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
