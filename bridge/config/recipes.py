"""Recipes by name: the folders they lie in, and what a name may be written like."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from bridge.flops.errors import ConfigError
from bridge.flops.shapes import short

_PACKAGE = Path(__file__).resolve().parent.parent


def recipe_folders() -> list[Path]:
    """Folders in which recipes are looked up by name: the shipped ones, training recipes before models."""
    inside, beside = _PACKAGE / "recipes", _PACKAGE.parent / "recipes"
    root = inside if inside.is_dir() else beside
    return [root, root / "models"]


def list_recipes() -> list[Path]:
    """Every shipped recipe, in the order of the lookup."""
    return [path for folder in recipe_folders() for path in sorted(folder.glob("*.yaml"))]


def find_recipe(recipe: str | Path, relative_to: Path | None = None) -> Path:
    """The file of a recipe's path or name. In names ``-``, ``_`` and ``.`` are equivalent, and ``.yaml`` is optional."""
    given = Path(recipe)
    path = given if relative_to is None else relative_to / given
    try:
        if path.is_file():
            return path
        if path.exists() and not path.is_dir():
            raise ConfigError(f"recipe {_named(recipe)} is not a regular file; save its content in one")
    except OSError as error:
        raise ConfigError(f"recipe {_named(recipe)} cannot be read: {error.strerror}") from None
    if given.parent == Path("."):  # a bare name
        folders = [*([relative_to] if relative_to else []), *recipe_folders()]
    else:
        folders = [path.parent]
    files = [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
    stem = given.name.removesuffix(".yaml").removesuffix(".yml")
    if renamed := next((file for file in files if file.stem == f"train_{stem}" and file.parent == recipe_folders()[0]), None):
        warnings.warn(
            f"recipe {_named(recipe)} is now called {renamed.stem}; 0.3 removes the old name", FutureWarning, stacklevel=2
        )
        return renamed
    for same in (lambda file: file.stem == stem, lambda file: _spelling(file.stem) == _spelling(stem)):
        for file in files:
            if same(file) and file.is_file():
                return file
    if path.is_dir():
        raise ConfigError(f"recipe {_named(recipe)} is a folder; name a YAML file in it")
    known = {_spelling(file.stem): file for file in [*reversed(list_recipes()), *files]}
    hint = nearest(_spelling(stem), known)
    remedy = f"did you mean {known[hint].stem}?" if hint else "`bridge recipes` lists all recipes"
    raise ConfigError(f"recipe {_named(recipe)} does not exist; {remedy}")


def _named(recipe: str | Path) -> str:
    """As it was given, in one line."""
    name = str(recipe)
    return name if name.isprintable() and len(name) <= 200 else short(name)


def _spelling(name: str) -> str:
    return re.sub(r"[-_.]", "-", name).lower()


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """What is spelled most like a name, if anything is."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)
