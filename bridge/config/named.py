"""A configuration by the name of a recipe or the path of a file: a recipe, a Hugging Face config.json, MaxText's YAML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bridge.config.loader import load_recipe, with_overrides
from bridge.config.schema import Config

#: Tokens of a sequence where nothing names them.
DEFAULT_LENGTH = 4096


def read_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A configuration from a Hugging Face config.json (or its folder), a YAML file of MaxText's, a recipe's path, or its name.

    What only training needs is not checked.  A file that names no length of a sequence gets ``DEFAULT_LENGTH`` tokens: its
    ``max_position_embeddings`` is a limit.

    Raises:
        ConfigError: one sentence naming the file or option, its value and the remedy.
    """
    path = Path(source)
    if os.path.isdir(path) and (path / "config.json").is_file():  # a name too long for a file is not an error here
        path /= "config.json"
    # Readers are imported where they are chosen: a recipe needs none of them.
    if path.suffix == ".json":
        from bridge.config.sources.huggingface import from_huggingface

        return with_overrides(_with_length(from_huggingface(path)), overrides)
    if path.suffix in (".yml", ".yaml"):
        from bridge.config.sources import maxtext

        if maxtext.recognises(path):
            return with_overrides(maxtext.from_maxtext(path), overrides)
    return load_recipe(source, overrides, validate=False)


def _with_length(config: Config) -> Config:
    model = config.model
    if model.seq_length is None:
        model.seq_length = min(DEFAULT_LENGTH, model.max_position_embeddings or DEFAULT_LENGTH)
    return config
