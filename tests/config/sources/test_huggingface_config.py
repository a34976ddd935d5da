"""What is taken for a configuration of Hugging Face's, which files are opened, and the words where there is no model in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bridge.config import ConfigError, from_huggingface
from bridge.config.sources.huggingface_config import MAX_FILE_SIZE, NOMINAL_LENGTH, nominal_length, read_by_row, read_config
from bridge.config.sources.huggingface_families import FAMILIES
from bridge.config.sources.huggingface_fields import Unread
from bridge.flops import compile_plan
from tests.config.sources.published import PUBLISHED, QWEN3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "lama"}, ["model_type='lama'", "did you mean 'llama'?"]),
        ({"model_type": 7}, ["model_type=7", "must be text"]),
        ({"model_type": "bert", "max_seq_length": 256, "do_lower_case": True}, ["'bert'", "neither a depth nor a width"]),
        ({"model_type": "gemma3", "vision_config": {}}, ["'gemma3'", "neither a depth nor a width"]),
        ({"hidden_size": 8}, ["model_type is missing"]),
        ({**QWEN3, "hidden_size": 0}, ["hidden_size", "0"]),
        ({**QWEN3, "layer_types": ["linear_attention"] * 28}, ["layer_types", "'linear_attention'", "sliding_attention"]),
        ("nowhere/config.json", ["nowhere/config.json", "No such file", "config.json or a folder"]),
        (3, ["int", "path"]),
    ],
)
def test_errors_name_the_field_and_the_remedy(config: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        from_huggingface(config)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}"])
def test_files_that_are_no_configurations(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json .*(JSON|nested too deeply)"):
        from_huggingface(tmp_path)


def test_only_regular_files_of_a_size_are_opened(tmp_path: Path) -> None:
    """A pipe or a device would be waited for, or read without end."""
    os.mkfifo(tmp_path / "pipe.json")
    for file in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is not a regular file"):
            from_huggingface(file)
    with (tmp_path / "config.json").open("w") as large:
        large.truncate(MAX_FILE_SIZE + 1)
    with pytest.raises(ConfigError, match=f"has more than {MAX_FILE_SIZE} bytes"):
        from_huggingface(tmp_path)


def test_the_largest_file_is_still_opened(tmp_path: Path) -> None:
    text = json.dumps(QWEN3)
    (tmp_path / "config.json").write_text(text + " " * (MAX_FILE_SIZE - len(text)))
    assert read_config(tmp_path) == read_config(QWEN3)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "qwen3"),
        ({"_name_or_path": "Qwen/Qwen3-0.6B"}, "Qwen3-0.6B"),
        ({"_name_or_path": "/models/mine/"}, "mine"),
        ({"_name_or_path": "mine"}, "mine"),
        ({"_name_or_path": ""}, "qwen3"),
    ],
)
def test_a_run_is_called_as_its_model(fields: dict[str, str], name: str) -> None:
    assert read_config(QWEN3 | fields).name == name


@pytest.mark.parametrize(
    ("values", "length"),
    [
        ({}, NOMINAL_LENGTH),
        ({"max_position_embeddings": 1}, 1),
        ({"max_position_embeddings": 0, "n_positions": 7}, 7),
        ({"max_position_embeddings": -1}, 4096),
        ({"max_position_embeddings": "512"}, 4096),
        ({"n_ctx": 9}, 9),
        ({"n_positions": 7, "max_seq_len": 8}, 7),
        ({"text_config": {"max_position_embeddings": 5}}, 5),
        ({"decoder_config": {"max_target_positions": 6}}, 6),
        ({"n_ctx": 9, "text_config": {"max_position_embeddings": 5}}, 9),
        ({"text_config": None}, 4096),
    ],
)
def test_tokens_of_a_sequence_where_no_batch_says_them(values: dict[str, Any], length: int) -> None:
    assert nominal_length(values) == length


def test_a_row_reads_or_says_that_it_does_not() -> None:
    found = read_by_row(QWEN3)
    assert (found.source, found.traced, found.framework, found.model_type) == ("read", None, "transformers", "qwen3")
    assert read_by_row(PUBLISHED["phi-4-mini-3.8b"]).framework == "transformers_fused"
    with pytest.raises(Unread, match="^model_type='qwen2_vl_text' outside of another configuration is a model without an output"):
        read_by_row(QWEN3 | {"model_type": "qwen2_vl_text"})
    with pytest.raises(Unread, match=f"^model_type='nope' is not known; bridge reads {len(FAMILIES)} others"):
        read_by_row(QWEN3 | {"model_type": "nope"})


def test_what_no_row_describes_is_traced() -> None:
    pytest.importorskip("transformers")
    values = {"model_type": "openai-gpt", "n_layer": 2, "n_embd": 48, "n_head": 3, "n_positions": 64, "vocab_size": 100}
    found = read_config(values | {"_name_or_path": "openai/gpt"})
    assert (found.source, found.name, found.model.seq_length) == ("traced", "gpt", 64)
    # 12 h^2 + 13 h a layer; the embeddings are tied and there is no last norm.
    assert compile_plan(found, "exact").parameters()["total"] == 2 * (12 * 48 * 48 + 13 * 48) + (100 + 64) * 48
    with pytest.raises(ConfigError, match="the file has no fields of a model, so there is nothing to trace"):
        read_config({"model_type": "openai-gpt", "architectures": ["OpenAIGPTLMHeadModel"], "torch_dtype": "float32"})


@pytest.mark.parametrize(
    ("spelt", "meant"),
    [
        ("lama", "llama"), ("Llama", "llama"), ("qwen-3-moe", "qwen3_moe"), ("qwen_3", "qwen3"), ("QWEN3", "qwen3"),
        ("qwen3-moe", "qwen3_moe"),
        ("deepsek_v3", "deepseek_v3"), ("deepseek_v9", None), ("llama5", None), ("pixtral", None), ("mixtrall", None),
    ],
)  # fmt: skip
def test_what_a_misspelt_family_means(spelt: str, meant: str | None) -> None:
    """Other digits, or more around a known name, are another family."""
    with pytest.raises(Unread) as error:
        read_by_row({**QWEN3, "model_type": spelt})
    hint = f"did you mean {meant!r}? " if meant else ""
    assert str(error.value).startswith(f"model_type={spelt!r} is not known; {hint}bridge reads ")


def test_unknown_fields_are_reported_and_reach_the_plan() -> None:
    assert from_huggingface(QWEN3).not_counted == ()
    strange = from_huggingface({**QWEN3, "extra_experts": 3, "switched_off": False, "bos_token_id": 1})
    (sentence,) = strange.not_counted
    assert sentence == "not recognized: extra_experts=3 may change the work; if it does, that is not counted"
    assert sentence in compile_plan(strange).not_counted


def test_parts_that_are_not_counted_are_named() -> None:
    file = {"model_type": "gemma4", "text_config": PUBLISHED["gemma4-e2b"], "vision_config": {"hidden_size": 768}}
    assert "vision_config" in from_huggingface(file).not_counted[0]
    (sentence,) = from_huggingface(PUBLISHED["deepseek-v3"] | {"num_nextn_predict_layers": 1}).not_counted
    assert sentence.startswith("num_nextn_predict_layers=1:")
    assert "model.mtp_num_layers=1" in sentence
    inner = {"model_type": "qwen3_vl", "text_config": {"odd_one": 1}, "vision_config": {"odd_two": 2}}
    places = [sentence.split("=")[0] for sentence in from_huggingface(inner).not_counted]
    assert places == ["not recognized: text_config.odd_one", "not recognized: vision_config.odd_two"]


def test_names_of_other_families_are_no_misspellings(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(values: Any) -> None:
        raise ConfigError("not traced here")

    monkeypatch.setattr("bridge.tracing.trace", refuse)
    mapping = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    for model_type in mapping.keys() - FAMILIES.keys():
        with pytest.raises(ConfigError) as error:
            from_huggingface({"model_type": model_type, "hidden_size": 8})
        assert "did you mean" not in str(error.value), model_type
