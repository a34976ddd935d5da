"""A configuration by the name that people give it: which reader it gets, and how long its sequences are."""

from __future__ import annotations

import json
import re

import pytest

from bridge.config import ConfigError, load_recipe, read_config
from bridge.config.named import DEFAULT_LENGTH
from bridge.config.schema import Config
from bridge.config.sources.huggingface import HuggingFaceConfig
from bridge.config.sources.maxtext import MaxTextConfig

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500,
    "max_position_embeddings": 512,
}  # fmt: skip
MAXTEXT = "decoder_block: llama2\nbase_num_decoder_layers: 3\nmax_target_length: 77\n"


@pytest.fixture
def llama(tmp_path):
    def written(name="config.json", **fields):
        (tmp_path / name).write_text(json.dumps(LLAMA | fields))
        return tmp_path / name

    return written


def test_a_file_and_its_folder_of_hugging_faces(llama):
    path = llama()
    found = read_config(path)
    assert isinstance(found, HuggingFaceConfig)
    assert read_config(str(path)) == read_config(path.parent) == read_config(str(path.parent)) == found
    assert found.model.num_layers == 2
    assert isinstance(read_config(llama("other.json")), HuggingFaceConfig)  # whatever it is called


def test_a_file_of_maxtexts_and_a_recipe_have_one_suffix(tmp_path):
    for suffix in (".yml", ".yaml"):
        (tmp_path / f"theirs{suffix}").write_text(MAXTEXT)
        found = read_config(tmp_path / f"theirs{suffix}", ["model.num_layers=5"])
        assert isinstance(found, MaxTextConfig)
        assert (found.model.num_layers, found.model.seq_length) == (5, 77)
    (tmp_path / "ours.yaml").write_text("model: {num_layers: 2, hidden_size: 64}\n")
    found = read_config(tmp_path / "ours.yaml")
    assert type(found) is Config
    assert (found.name, found.model.num_layers, found.model.seq_length) == ("ours", 2, None)


def test_a_recipe_by_its_name_is_not_held_against_training():
    assert read_config("tiny") == load_recipe("tiny")
    with pytest.raises(ConfigError):
        load_recipe("tiny", ["train.global_batch_size=10"])
    assert read_config("tiny", ["train.global_batch_size=10"]).train.global_batch_size == 10


@pytest.mark.parametrize(
    ("limit", "length"),
    [(512, 512), (DEFAULT_LENGTH - 1, 4095), (DEFAULT_LENGTH, 4096), (DEFAULT_LENGTH + 1, 4096), (10**6, 4096)],
)
def test_a_limit_of_positions_is_no_length(llama, limit, length):
    assert read_config(llama(max_position_embeddings=limit)).model.seq_length == length


def test_a_model_without_positions_has_the_usual_length(tmp_path):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 32, "vocab_size": 500}
    (tmp_path / "mamba.json").write_text(json.dumps({"model_type": "mamba2", **sizes}))
    found = read_config(tmp_path / "mamba.json").model
    assert (found.max_position_embeddings, found.seq_length) == (None, 4096)


def test_an_override_wins_over_the_length(llama):
    found = read_config(llama(), ["model.seq_length=9", "model.num_layers=7"])
    assert (found.model.seq_length, found.model.num_layers) == (9, 7)
    assert isinstance(found, HuggingFaceConfig)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/config.json", "nowhere/config.json cannot be read (No such file or directory); give a config.json or a folder"),
        ("tinny", "recipe tinny does not exist; did you mean tiny?"),
    ],
)
def test_what_is_not_there_is_named(source, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(source)


def test_a_folder_without_a_configuration_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        read_config(tmp_path)
    with pytest.raises(ConfigError):
        read_config("a" * 5000)
