"""Files that are no recipes: each gets one sentence on the command line, none a traceback or a long wait."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bridge.cli.main import main
from bridge.config import ConfigError, load_recipe, yaml_file

MODEL = "model: {num_layers: 2, hidden_size: 64, num_attention_heads: 4, vocab_size: 257, seq_length: 64}\n"


def sentence(capsys, *arguments: str) -> str:
    """What ``bridge flops`` says, which must be a configuration's error in one short line, soon."""
    start = time.process_time()
    code = main(["flops", *arguments])
    assert time.process_time() - start < 30  # what it guards against takes hours
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert shown.err.startswith("bridge: error: ")
    assert shown.err.count("\n") == 1
    assert len(shown.err) < 600
    return shown.err


def aliases(levels: int) -> str:
    """Ten of ten of ten ..."""
    lines = ["k0: &k0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", *(f"k{i}: &k{i} [{f'*k{i - 1}, ' * 10}]" for i in range(1, levels))]
    return "\n".join(lines) + "\n"


FILES = {
    "30 digits": (f"model: {{num_layers: {'9' * 30}}}\n", "model.num_layers=9"),
    "5000 digits": (f"model: {{num_layers: {'9' * 5000}}}\n", "holds a value that cannot be read"),
    "5000 hexadecimal digits": (f"model: {{num_layers: 0x{'f' * 5000}}}\n", "model.num_layers="),
    "a million layers": (MODEL.replace("2,", "1000000,", 1), "1000000 layers are more than the maximum"),
    "an open list": ("x: " + "[" * 5000, "is nested more than 32 levels deep"),
    "a deep list": ("x: " + "[" * 5000 + "]" * 5000, "is nested more than 32 levels deep"),
    "a deep mapping": ("model: " + "{a: " * 600 + "1" + "}" * 600, "is nested more than 32 levels deep"),
    "deep aliases": ("k0: &k0 [1]\n" + "".join(f"k{i}: &k{i} [*k{i - 1}]\n" for i in range(1, 130)), "is nested too deeply"),
    "many aliases": (aliases(9), "expansion exceeds"),
    "an alias of itself": ("model: &a {vision_config: *a}\n", "recursive aliases"),
    "nested references": ("name: '" + "${a:" * 400 + "}" * 400 + "'\n", "is nested too deeply"),
    "many references": (f"name: '{'${a}' * 1000}'\n", "more than 2000 characters of ${references}"),
    "a reference to itself": ("name: ${name}\n" + MODEL, "Recursive interpolation"),
    "a tag that is none": ("model: {num_layers: !!bool abc}\n", "does not match its tag"),
    "a time that is none": ("model: {num_layers: !!timestamp abc}\n", "does not match its tag"),
    "an integer that is none": ("model: {num_layers: !!int abc}\n", "holds a value that cannot be read: invalid literal"),
    "a call": ('model: !!python/object/apply:os.system ["false"]\n', "could not determine a constructor"),
    "a bare value": ("3\n", "holds no options"),
    "control characters": ("name: \x00\n", "control characters are not allowed"),
    "too long": ("# " + "x" * 2**20, "is larger than 1 MiB"),
    "a number as base": ("base: 7\n" + MODEL, "base=7 must be a recipe's path or name"),
    "a mapping as base": ("base: {a: 1}\n" + MODEL, "base={'a': 1} must be a recipe's path or name"),
    "a reference as base": ("base: ${name}\n" + MODEL, "base: recipe ${name} does not exist"),
    "a long base": (f"base: {'a' * 5000}\n" + MODEL, "cannot be read: File name too long"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_gets_one_sentence(name, tmp_path, capsys):
    text, words = FILES[name]
    (tmp_path / "bad.yaml").write_text(text)
    assert words in sentence(capsys, str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"model.num_layers={'9' * 5000}", "cannot be read"),
        (f"model.num_layers={'[' * 5000}", "nested more than 32 levels deep"),
        (f"model.vision_config={'{a: ' * 90}1{'}' * 90}", "nested more than 32 levels deep"),
        (f"name={'${a}' * 1000}", "characters of ${references}"),
        (f"model.{'a.' * 3000}a=1", "is nested too deeply"),
        ("model.num_layers=!!bool abc", "does not match its tag"),
    ],
)
def test_a_bad_override_gets_one_sentence(override, words, capsys):
    assert words in sentence(capsys, "tiny", override)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.yaml")
    return tmp_path / "pipe.yaml"


def test_what_has_no_end_is_not_read(pipe, tmp_path, capsys):
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in (pipe, "/dev/zero", tmp_path / "zero.yaml"):
        assert "is not a regular file" in sentence(capsys, str(name))
    assert "does not exist" in sentence(capsys, str(pipe.with_suffix("")))
    (tmp_path / "top.yaml").write_text(f"base: {pipe.name}\n{MODEL}")
    assert "base: recipe pipe.yaml is not a regular file" in sentence(capsys, str(tmp_path / "top.yaml"))
    with pytest.raises(ConfigError, match="is not a regular file"):
        yaml_file.read(pipe)


@pytest.mark.parametrize("name", ["a" * 5000, "a\nb.yaml", "a\0b"])
def test_names_that_no_file_has(name, capsys):
    sentence(capsys, name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"base_emb_dim: {'9' * 5000}\n", "holds a value that cannot be read"),
        ("x: " + "{a: " * 600 + "1" + "}" * 600, "is nested more than 32 levels deep"),
        ("x: !!bool abc\n", "does not match its tag"),
        (f"base_config: {'a' * 5000}.yml\n", "does not exist; name a file beside this one"),
        ("base_config: pipe.yaml\n", "base_config='pipe.yaml' does not exist"),
        ("base_num_decoder_layers: 1000000\n", "1000000 layers are more than the maximum"),
    ],
)
def test_files_of_maxtext_are_read_as_carefully(text, words, tmp_path, pipe, capsys):
    (tmp_path / "bad.yml").write_text("decoder_block: llama2\n" + text)
    assert words in sentence(capsys, str(tmp_path / "bad.yml"))


# ---- bases ----------------------------------------------------------------------------------------------------------


def test_a_base_of_many_is_read_once_and_laid_where_it_comes_last(tmp_path, monkeypatch):
    """Eight levels of eight times the same base: 8^8 files, of which there are nine."""
    for level in range(8):
        (tmp_path / f"level{level}.yaml").write_text(f"base: [{', '.join([f'level{level + 1}.yaml'] * 8)}]\n")
    (tmp_path / "level8.yaml").write_text(MODEL)
    read, files = yaml_file.read, []
    monkeypatch.setattr(yaml_file, "read", lambda path: files.append(path.name) or read(path))
    assert load_recipe(tmp_path / "level0.yaml", validate=False).model.num_layers == 2
    assert sorted(files) == [f"level{level}.yaml" for level in range(9)]


def test_what_two_bases_build_on_covers_the_first_of_them(tmp_path):
    (tmp_path / "ground.yaml").write_text("model: {num_layers: 1, hidden_size: 8}\n")
    (tmp_path / "a.yaml").write_text("base: ground.yaml\nmodel: {num_layers: 2, vocab_size: 5}\n")
    (tmp_path / "b.yaml").write_text("base: ground.yaml\nmodel: {seq_length: 3}\n")
    (tmp_path / "top.yaml").write_text("base: [a.yaml, b.yaml]\ntrain: {train_iters: 1}\n")
    model = load_recipe(tmp_path / "top.yaml", validate=False).model
    assert (model.num_layers, model.hidden_size, model.vocab_size, model.seq_length) == (1, 8, 5, 3)


def test_bases_without_end(tmp_path, capsys):
    for level in range(9):
        for one in range(8):
            bases = ", ".join(f"{level + 1}-{other}.yaml" for other in range(8))
            (tmp_path / f"{level}-{one}.yaml").write_text(f"base: [{bases}]\n" if level < 8 else MODEL)
    assert "builds on more than 64 recipes" in sentence(capsys, str(tmp_path / "0-0.yaml"))
    for link in range(200):
        (tmp_path / f"chain{link}.yaml").write_text(f"base: chain{link + 1}.yaml\n")
    assert "builds on more than 64 recipes" in sentence(capsys, str(tmp_path / "chain0.yaml"))
