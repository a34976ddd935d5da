"""Prompts with answers, from real text: functions of Python sources, or the ``input`` and ``output`` of JSON lines.

Every function with a docstring in a Python source gives one example: signature and docstring are the prompt, the rest of
the body is the answer.  Examples follow the order of the files and of the lines in a file, so the order is the same on every
machine with the same sources.
"""

from __future__ import annotations

import ast
import json
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from bridge.data.text import find_files
from bridge.flops.shapes import ConfigError


class Example(NamedTuple):
    """One prompt and the answer to learn, in UTF-8."""

    prompt: bytes
    answer: bytes


def read_examples(path: Any = None, max_examples: int | None = None) -> list[Example]:
    """The examples in the files that ``data.path`` names.

    Args:
        path: as for :func:`bridge.data.text.find_files`; files ending in ``.jsonl`` hold examples, ``.py`` Python sources,
            other files are ignored. None: the sources of the running Python's standard library.
        max_examples: stop after this number of examples.

    Raises:
        ConfigError: A file cannot be read, a line is not an example, or there are no examples.
    """
    examples = list(islice((example for file in find_files(path) for example in _read(file)), max_examples))
    if not examples:
        raise ConfigError(
            f"data.path={path!r} holds no examples. Give .jsonl files with `input` and `output` on each line, or Python "
            "sources with functions that have a docstring."
        )
    return examples


def _read(file: Path) -> Iterator[Example]:
    reader = _READERS.get(file.suffix)
    if reader is None:
        return
    try:
        yield from reader(file)
    except OSError as error:
        raise ConfigError(f"data.path: {str(file)!r} cannot be read: {error.strerror}. Check its permissions.") from error


def _from_source(file: Path) -> Iterator[Example]:
    try:
        with tokenize.open(file) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes and comparisons in the sources
            source = stream.read()
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # sources for another version of Python
        return
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    lines = source.split("\n")
    for function in sorted(functions, key=lambda node: node.lineno):
        if len(function.body) < 2 or ast.get_docstring(function, clean=False) is None:
            continue
        first, last, end = function.lineno - 1, function.body[0].end_lineno, function.end_lineno
        assert last is not None
        assert end is not None
        if function.body[1].lineno <= last:  # on the line of the docstring
            continue
        whole = textwrap.dedent("\n".join(lines[first:end])).split("\n")
        prompt, answer = (("\n".join(part) + "\n").encode() for part in (whole[: last - first], whole[last - first :]))
        yield Example(prompt, answer)


def _from_json_lines(file: Path) -> Iterator[Example]:
    with open(file, encoding="utf-8") as stream:
        try:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    yield Example(row["input"].encode(), row["output"].encode())
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ConfigError(
                        f"data.path: line {number} of {str(file)!r} is not a JSON object with the strings `input` and "
                        "`output`. Correct or remove it."
                    ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"data.path: {str(file)!r} is not UTF-8. Save it as UTF-8.") from error


_READERS = {".py": _from_source, ".jsonl": _from_json_lines}
