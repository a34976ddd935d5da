"""Documents: which files, in which order, cut where; and what is said when there are none."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from bridge.data.corpus import Corpus, load_corpus, split
from bridge.data.text import find_files, read_documents
from bridge.data.tokenizer import ByteTokenizer, JsonTokenizer, build_tokenizer
from bridge.flops.shapes import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {"b.txt": "two", "a.txt": "one", "deep/c.txt": "three", ".hidden/d.txt": "no", "e.md": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_folder_gives_its_files_by_name_and_leaves_out_hidden_and_empty_ones(folder: Path) -> None:
    assert read_documents(str(folder)) == [b"one", b"two", b"three"]


def test_a_file_a_glob_and_a_list_name_the_same_way(folder: Path) -> None:
    assert read_documents(str(folder / "b.txt")) == [b"two"]
    assert read_documents(str(folder / "*.txt")) == [b"one", b"two"]
    assert read_documents([str(folder / "b.txt"), str(folder / "deep")]) == [b"two", b"three"]
    assert read_documents(str(folder), max_documents=2) == [b"one", b"two"]


def test_a_separator_cuts_a_file_into_documents(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("first\nline\n---\nsecond\n---\n\n---\nthird\n")
    assert read_documents(str(tmp_path), separator="---") == [b"first\nline", b"second", b"third"]


def test_without_a_path_the_standard_library_gives_documents_of_very_different_length() -> None:
    lengths = [len(document) for document in read_documents(max_documents=2000)]
    assert len(lengths) == 2000
    assert np.quantile(lengths, 0.95) > 20 * np.quantile(lengths, 0.05)
    files = list(find_files(None))
    assert Path(sysconfig.get_paths()["stdlib"], "abc.py") in files
    assert not any("site-packages" in file.parts for file in files)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [("missing", "does not exist"), ("empty", "holds no files"), ("*.none", "holds no files"), ([], "names no text")],
)
def test_no_text_is_an_error_that_names_the_option(tmp_path: Path, path: object, remedy: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"data\.path=.*{remedy}"):
        read_documents(str(tmp_path / path) if isinstance(path, str) else path)


def test_an_unreadable_file_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked.txt").write_text("text")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # a superuser may read everything
    with pytest.raises(ConfigError, match=r"data\.path: .*locked\.txt.*Permission denied"):
        read_documents(str(tmp_path))


def test_documents_that_are_too_short_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abc|d|ef")
    corpus = load_corpus(str(tmp_path), ByteTokenizer(), separator="|", min_document_length=2)
    assert [corpus.document(i).tolist() for i in range(len(corpus))] == [[97, 98, 99], [101, 102]]
    assert corpus.lengths.tolist() == [3, 2]
    with pytest.raises(ConfigError, match=r"data\.min_document_length=9"):
        load_corpus(str(tmp_path), ByteTokenizer(), min_document_length=9)


def test_the_fingerprint_sees_tokens_and_their_borders() -> None:
    tokens = [np.arange(5, dtype=np.uint8), np.arange(3, dtype=np.uint8)]
    same = Corpus.of(tokens, 256)
    moved = Corpus.of([np.arange(5, dtype=np.uint8)[:4], np.array([4, 0, 1, 2], dtype=np.uint8)], 256)
    other = Corpus.of([np.arange(5, dtype=np.uint8), np.array([0, 1, 3], dtype=np.uint8)], 256)
    assert same.fingerprint() == Corpus.of(tokens, 256).fingerprint()
    assert len({same.fingerprint(), moved.fingerprint(), other.fingerprint()}) == 3


def test_the_split_is_a_partition_that_follows_from_the_seed() -> None:
    training, evaluation = split(100, 0.1, seed=7)
    assert sorted([*training, *evaluation]) == list(range(100))
    assert len(evaluation) == 10
    assert np.array_equal(evaluation, split(100, 0.1, seed=7)[1])
    assert not np.array_equal(evaluation, split(100, 0.1, seed=8)[1])
    assert [len(part) for part in split(2, 0.01, seed=0)] == [1, 1]
    assert [len(part) for part in split(1, 0.5, seed=0)] == [1, 0]
    assert [len(part) for part in split(5, 0.0, seed=0)] == [5, 0]


def test_a_tokenizers_file_is_read_and_its_end_of_document_token_found(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "hello": 1, "world": 2, "<|endoftext|>": 3}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = build_tokenizer(str(tmp_path / "tokenizer.json"))
    assert (tokenizer.vocab_size, tokenizer.eod) == (4, 3)
    assert [tokens.tolist() for tokens in tokenizer.encode([b"hello world", b"world \xff"])] == [[1, 2], [2, 0]]
    with pytest.raises(ConfigError, match=r"data\.tokenizer=.*neither"):
        JsonTokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="not a tokenizers JSON file"):
        JsonTokenizer(tmp_path / "bad.json")
