"""Layers and their order, what is rejected and with which words, and the way back from a dumped configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.config import ConfigError, dump_config, load_recipe, with_overrides


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def rejection(recipe, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- layers ---------------------------------------------------------------------------------------------------------


def test_each_layer_wins_over_the_one_below(write):
    write("ground.yaml", "model: {num_layers: 2, hidden_size: 64}\ntrain: {train_iters: 7, micro_batch_size: 2}\n")
    top = write("top.yaml", "base: ground.yaml\nmodel: {num_layers: 4}\n")
    cfg = load_recipe(top, ["train.train_iters=9"], validate=False)
    assert (cfg.model.num_layers, cfg.model.hidden_size) == (4, 64)  # recipe over base; base alone
    assert (cfg.train.train_iters, cfg.train.micro_batch_size) == (9, 2)  # command line over base; base alone
    assert cfg.train.global_batch_size == 8  # the default


def test_later_bases_win_and_a_recipe_is_called_as_its_file(write):
    write("a.yaml", "name: first\nmodel: {num_layers: 1, hidden_size: 8}\n")
    write("b.yaml", "model: {num_layers: 2}\n")
    top = write("top.yaml", "base: [a.yaml, b]\ndata: {batching: fixed}\n")
    cfg = load_recipe(top, validate=False)
    assert (cfg.name, cfg.model.num_layers, cfg.model.hidden_size) == ("top", 2, 8)
    assert cfg.logger.metrics_file == "runs/top/metrics.jsonl"


def test_a_base_may_be_a_shipped_recipe(write):
    top = write("mine.yaml", "base: llama3-8b\nmodel: {num_layers: 2}\n")
    cfg = load_recipe(top, validate=False)
    assert (cfg.model.num_layers, cfg.model.hidden_size) == (2, 4096)


def test_the_last_override_wins_and_values_are_yaml():
    cfg = load_recipe(
        "tiny",
        [
            "model.num_layers=2",
            "model.num_layers=6",
            "optimizer.lr=1e-4",
            "model.moe_layer_freq=[0, 1]",
            "logger.wandb_project=null",
            "data.path=[a b, c=d]",
        ],
    )
    assert cfg.model.num_layers == 6
    assert cfg.optimizer.lr == 1e-4
    assert cfg.model.moe_layer_freq == [0, 1]
    assert cfg.logger.wandb_project is None
    assert cfg.data.path == ["a b", "c=d"]


def test_an_override_reaches_into_a_list_and_into_an_unset_section():
    cfg = load_recipe("tiny", ["callbacks.0.convention=exact", "peft.dim=4"])
    assert cfg.callbacks == [{"_target_": "bridge.training.callbacks.ThroughputCallback", "convention": "exact"}]
    assert cfg.peft is not None
    assert (cfg.peft.dim, cfg.peft.alpha) == (4, 16.0)


def test_the_tensor_parallel_size_is_known_to_the_model():
    assert load_recipe("tiny", ["parallel.tensor_model_parallel_size=2"]).model.tensor_model_parallel_size == 2


def test_with_overrides_leaves_the_original_alone():
    cfg = load_recipe("tiny")
    assert with_overrides(cfg, ["model.num_layers=9"]).model.num_layers == 9
    assert cfg.model.num_layers == 4


@pytest.mark.parametrize("recipe", ["tiny_moe", "deepseek_v3", "qwen2.5-vl-7b"])
def test_a_dumped_configuration_is_read_back_equal(recipe, tmp_path):
    cfg = load_recipe(recipe, ["peft.dim=4", "parallel.tensor_model_parallel_size=2"], validate=False)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(cfg))
    assert load_recipe(path, validate=False) == cfg


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "holds a list"),
        ("model: {num_layers: 1\n", ":2:1 is not valid YAML"),
        ("model:\n  num_layers: 1\n   hidden_size: 2\n", "is not valid YAML"),
        ("model: {num_layers: 1, num_layers: 2}\n", "duplicate key num_layers"),
        ("model: 3\n", "model=3 must be a mapping of options"),
        ("model: null\n", "model=null must be a mapping of options"),
        ("base: [tiny, 5]\n", "base=['tiny', 5] must be"),
        ("base: no-such-recipe-anywhere\n", "base: recipe no-such-recipe-anywhere does not exist"),
        ("name: ${nowhere}\nmodel: {num_layers: 1}\n", "'nowhere' not found"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(write, text, words):
    path = write("bad.yaml", text)
    message = rejection(path)
    assert message.startswith(str(path))
    assert words in message


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(bytes(range(128, 256)))
    assert f"{path} is not valid YAML" in rejection(path)


def test_a_circle_of_bases_is_shown(write):
    write("a.yaml", "base: b.yaml\n")
    write("b.yaml", "base: a.yaml\n")
    assert "a.yaml -> b.yaml -> a.yaml" in rejection(write("c.yaml", "base: a.yaml\n"))


# ---- keys and types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.train_iter=5", "unknown option train.train_iter; did you mean train.train_iters?"),
        ("train_iters=5", "unknown option train_iters; did you mean train.train_iters?"),
        ("train.num_layers=5", "unknown option train.num_layers; did you mean model.num_layers?"),
        ("modle.num_layers=5", "unknown option modle; did you mean model?"),
        ("model.tensor_model_parallel_size=2", "did you mean parallel.tensor_model_parallel_size?"),
        ("data.qqqqqq=1", "unknown option data.qqqqqq; choose from data.kind, data.path, data.tokenizer"),
        ("train.train_iters=abc", 'train.train_iters="abc" must be an integer'),
        ("train.train_iters=null", "train.train_iters=null must be an integer"),
        ("model.num_layers=2.5", "model.num_layers=2.5 must be an integer or null"),
        ("optimizer.lr=true", "optimizer.lr=true must be a number"),
        ("parallel.sequence_parallel=maybe", 'sequence_parallel="maybe" must be true or false'),
        ("data.batching=bucketed", 'data.batching="bucketed" must be one of padded, packed, fixed'),
        ("data.batching=null", "data.batching=null must be one of padded, packed, fixed"),
        ("logger.wandb_mode=sideways", 'logger.wandb_mode="sideways" must be one of online, offline, disabled or null'),
        ("optimizer.optimizer=[adam]", 'optimizer.optimizer=["adam"] must be one of adam, sgd'),
        ("train.rampup_batch_size=[1, a]", 'train.rampup_batch_size=[1, "a"] must be a list of integers or null'),
        ("train.skip_iterations=3", "train.skip_iterations=3 must be a list of integers"),
        ("peft=5", "peft=5 must be a mapping of options or null"),
        ("callbacks.3.convention=exact", "callbacks"),
        ("model.num_layers", "must have the form section.option=value"),
        ("=3", "must have the form section.option=value"),
        ("model.num_layers={a", "the value is not valid YAML"),
    ],
)
def test_a_bad_override_is_named_with_its_remedy(override, words):
    message = rejection("tiny", override)
    assert "override" in message
    assert override in message
    assert words in message


def test_a_choice_may_refer_to_another_and_is_held_against_its_own():
    assert load_recipe("tiny", ["name=sgd", "optimizer.optimizer=${name}"]).optimizer.optimizer == "sgd"
    message = rejection("tiny", "optimizer.optimizer=${model.activation_func}")
    assert message == 'tiny: optimizer.optimizer="silu" must be one of adam, sgd'


def test_an_unknown_key_in_a_file_is_named_with_the_file(write):
    path = write("typo.yaml", "model: {num_layer: 2}\n")
    assert rejection(path) == f"{path}: unknown option model.num_layer; did you mean model.num_layers?"


def test_an_unknown_option_of_a_large_section_names_some_of_it():
    with pytest.raises(
        ConfigError, match=r"unknown option model\.zzzzzzzz; choose from model\.num_layers, .* and \d+ more$"
    ) as error:
        load_recipe("tiny", ["model.zzzzzzzz=1"])
    assert len(str(error.value)) < 2000
