"""The shell commands of the documentation: every line of every ```bash block."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SEPARATORS = {";", "&&", "||", "&", "|"}
#: Words that make a block a script, which is run as a whole or not at all.
_SCRIPT = re.compile(r"^\s*(for|if|while|case|function)\b|<<", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """One command, as words; ``page`` is where it stands."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks() -> Iterator[tuple[str, str]]:
    """(page, text) of every shell block."""
    for page in PAGES:
        for match in _BLOCK.finditer(page.read_text()):
            yield str(page.relative_to(ROOT)), match[1]


def scripts() -> list[tuple[str, str]]:
    """Blocks with loops and conditions."""
    return [(page, text) for page, text in blocks() if _SCRIPT.search(text)]


def commands() -> list[Command]:
    """Every command of the other blocks, once, without environment assignments, redirections and comments."""
    found: dict[tuple[str, ...], Command] = {}
    for page, text in blocks():
        if _SCRIPT.search(text):
            continue
        for line in text.replace("\\\n", " ").splitlines():
            for words in _split(line):
                found.setdefault(words, Command(page, words))
    return list(found.values())


def _split(line: str) -> Iterator[tuple[str, ...]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in _SEPARATORS:
            words.append(word)
            continue
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if ">" in words:
            words = words[: words.index(">")]
        if words:
            yield tuple(words)
        words = []
