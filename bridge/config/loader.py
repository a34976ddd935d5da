"""From a recipe's name to a checked :class:`Config`: defaults < base recipes < recipe < ``key=value`` overrides.

A recipe is a YAML file that holds only what differs from the defaults.  ``base:`` names one or several recipes to build
on, by name or relative to the file.  Unknown keys are rejected with the closest known name; every error is one
:class:`ConfigError` that names the option, its value and a remedy.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bridge.config import yaml_file
from bridge.config.recipes import find_recipe, nearest
from bridge.config.schema import Config
from bridge.config.validation import validate as validate_config
from bridge.config.yaml_file import first_line
from bridge.flops.shapes import ConfigError, short

#: Options that an error lists; a section may have hundreds.
_MOST_NAMED = 40
# Options that another section owns: the loader writes them, a recipe must not.
_OWNED_ELSEWHERE = {"model.tensor_model_parallel_size": "parallel.tensor_model_parallel_size"}
_LIST_INDEX = re.compile(r"\[\d+\]")


def load_recipe(recipe: str | Path, overrides: Sequence[str] = (), *, validate: bool = True) -> Config:
    """Read a recipe by path or by name and apply ``section.option=value`` overrides.

    ``validate=False`` skips the checks that only training needs (such as divisibility by the parallel layout);
    key and type errors are always raised.

    Raises:
        ConfigError: The message is one sentence that names the file or option, its value and the remedy.
    """
    path = find_recipe(recipe)
    config = _lay(Config(name=path.stem), [*_read_with_bases(path), *map(_read_override, overrides)], str(recipe))
    if validate:
        validate_config(config)
    return config


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """A copy of a configuration with ``section.option=value`` overrides, not validated.

    Raises:
        ConfigError: An override is malformed, or changes a size of a traced model.
    """
    sizes = [name for name in overrides if name.startswith("model.") and not name.startswith("model.seq_length=")]
    if sizes and getattr(config, "traced", None) is not None:
        raise ConfigError(
            f"{sizes[0]}: the model was traced, so overrides cannot change its sizes; change the config or the module"
        )
    # What a model's file or a trace found is not an option: it is set aside while options are merged.
    aside: dict[str, Any] = {name: value for name in ("traced", "formats") if (value := getattr(config, name, None)) is not None}
    nothing: dict[str, Any] = dict.fromkeys(aside)
    plain = dataclasses.replace(config, **nothing)
    return dataclasses.replace(_lay(plain, map(_read_override, overrides), config.name), **aside)


def _lay(config: Config, layers: Iterable[_Layer], source: str) -> Config:
    merged = _structured(config)
    for layer in layers:
        _check_keys(layer)
        merged = _merge(merged, layer)
    try:
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # a broken ${reference}, or ??? left open
        raise ConfigError(f"{source}: {first_line(error)} (option {error.full_key})") from None
    assert isinstance(result, Config)
    for problem in _chosen_problems(result):  # what a ${reference} came to
        raise ConfigError(f"{source}: {problem}")
    _remember_written(config, merged, result)
    result.model.tensor_model_parallel_size = result.parallel.tensor_model_parallel_size
    return result


def _structured(config: Config) -> Any:
    """A copy of the defaults costs a sixth of looking at every option's type again."""
    if config != Config(name=config.name):
        return OmegaConf.structured(config)
    merged = copy.deepcopy(_defaults())
    merged.name = config.name
    return merged


@cache
def _defaults() -> Any:
    return OmegaConf.structured(Config)


@cache
def _default_texts() -> dict[_Path, Any]:
    return dict(_texts(dataclasses.asdict(Config())))


def dump_config(config: Config, mask: Callable[[Any], Any] = lambda values: values) -> str:
    """The effective configuration as YAML; :func:`load_recipe` reads it back to an equal one.

    ``mask`` returns the nested options without what must not be stored.
    """
    values = as_written(config)
    for option in _OWNED_ELSEWHERE:
        section, name = option.split(".")
        del values[section][name]
    return OmegaConf.to_yaml(OmegaConf.create(mask(values)))


# ---- what was written ------------------------------------------------------------------------------------------------

_Path = tuple[str | int, ...]
_WRITTEN = "_written"


def as_written(config: Config) -> dict[str, Any]:
    """The nested options with ``${...}`` unresolved: the source of a secret, not the secret."""
    values = dataclasses.asdict(config)
    for path, (text, resolved) in vars(config).get(_WRITTEN, {}).items():
        holder: Any = values
        try:
            for key in path[:-1]:
                holder = holder[key]
            if holder[path[-1]] == resolved:  # not set anew since
                holder[path[-1]] = text
        except (KeyError, IndexError, TypeError):
            continue
    return values


def _remember_written(before: Config, merged: Any, result: Config) -> None:
    """Kept outside the options, so that configurations with equal values are equal."""
    resolved, defaults = dict(_texts(dataclasses.asdict(result))), _default_texts()
    written = dict(vars(before).get(_WRITTEN, {}))
    for path, text in _texts(OmegaConf.to_container(merged)):
        if "${" in text and defaults.get(path) != text and path in resolved:
            written[path] = (text, resolved[path])
    vars(result)[_WRITTEN] = written


def _texts(values: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        if isinstance(value, str):
            yield (*path, key), value
        else:
            yield from _texts(value, (*path, key))


# ---- reading layers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """Options from one place, and how an error calls that place."""

    source: str
    values: DictConfig
    list_item: str | None = None
    """The key, where it points into a list (``callbacks.0.convention``): merging would replace the list."""


#: A recipe builds on at most this many others, theirs included.
_MAX_BASES = 64


def _read_with_bases(path: Path) -> list[_Layer]:
    """The layers of a recipe, its own last.

    A recipe that several others build on is read once and laid where it comes last: what lay under that is covered anyway.
    """
    layers: dict[Path, _Layer] = {}
    left = iter(range(_MAX_BASES))

    def read(file: Path, above: tuple[Path, ...]) -> None:
        resolved = file.resolve()
        if resolved in above:
            chain = " -> ".join(one.name for one in (*above[above.index(resolved) :], resolved))
            raise ConfigError(f"{file}: base recipes form a circle ({chain}); remove one `base:`")
        if resolved in layers:
            return
        values = yaml_file.read(file)
        bases = _take_bases(file, values)
        if above:
            values.pop("name", None)  # a recipe is not called as the one it builds on
        layers[resolved] = _Layer(str(file), values)
        for base in reversed(bases):  # last to first, as the layers are collected
            if next(left, None) is None:
                raise ConfigError(f"{path}: base: it builds on more than {_MAX_BASES} recipes; merge some of them")
            try:
                found = find_recipe(base, relative_to=file.parent)
            except ConfigError as error:
                raise ConfigError(f"{file}: base: {error}") from None
            read(found, (*above, resolved))

    read(path, ())
    return list(reversed(layers.values()))


def _take_bases(path: Path, values: DictConfig) -> list[str]:
    bases = yaml_file.plain(values).get("base") or []
    if "base" in values:
        del values["base"]
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: base={short(bases)} must be a recipe's path or name, or a list of them")
    return bases


def _read_override(text: str) -> _Layer:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"override {text!r} must have the form section.option=value")
    source = f"override {short(text)}"
    with yaml_file.sentences(source, lambda error: f"{source}: the value is not valid YAML: {error.problem}; quote it"):
        yaml_file.check(value, source)
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
        values = OmegaConf.create({})
        OmegaConf.update(values, key, parsed["value"], force_add=True)  # type: ignore[call-overload, index]
    item = key if re.search(r"[.\[]\d", key) else None
    return _Layer(f"override {text}", values, item)


# ---- checking and merging -------------------------------------------------------------------------------------------


def _check_keys(layer: _Layer) -> None:
    values = OmegaConf.to_container(layer.values, resolve=False)
    assert isinstance(values, dict)
    for problem in _key_problems(values, Config):
        raise ConfigError(f"{layer.source}: {problem}")


def _named_siblings(option: str) -> str:
    names = _siblings(option)
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _key_problems(values: Mapping[Any, Any], schema: type, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        option = f"{prefix}{key}"
        if key not in hints or option in _OWNED_ELSEWHERE:
            hint = _OWNED_ELSEWHERE.get(option) or _nearest_option(option)
            remedy = f"did you mean {hint}?" if hint else f"choose from {_named_siblings(option)}"
            yield f"unknown option {option}; {remedy}"
        elif section := _dataclass_in(hints[key]):
            if isinstance(value, Mapping):
                yield from _key_problems(value, section, f"{option}.")
            elif value is not None or not _is_optional(hints[key]):
                yield f"{option}={_shown(value)} must be {_in_words(hints[key])}"
        elif not (isinstance(value, str) and "${" in value):
            yield from _choice_problems(schema, key, option, value)


def _chosen_problems(section: Any, prefix: str = "") -> Iterator[str]:
    """The same of a finished configuration."""
    for name, value in vars(section).items():
        if dataclasses.is_dataclass(value):
            yield from _chosen_problems(value, f"{prefix}{name}.")
        else:
            yield from _choice_problems(type(section), name, prefix + name, value)


def _choice_problems(schema: type, name: str, option: str, value: Any) -> Iterator[str]:
    item = schema.__dataclass_fields__[name]  # type: ignore[attr-defined]
    choices = item.metadata.get("choices", ())
    optional = item.default is None
    if choices and value not in choices and not (optional and value is None):
        yield f"{option}={_shown(value)} must be one of {', '.join(choices)}{' or null' if optional else ''}"


def _is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _all_options(schema: type = Config, prefix: str = "") -> Iterator[str]:
    for name, hint in typing.get_type_hints(schema).items():
        yield f"{prefix}{name}"
        if section := _dataclass_in(hint):
            yield from _all_options(section, f"{prefix}{name}.")


def _siblings(option: str) -> list[str]:
    section = option.rpartition(".")[0]
    return [known for known in _all_options() if known.rpartition(".")[0] == section]


def _nearest_option(option: str) -> str | None:
    """The option of the same section with the most similar name; else the same name in another section."""
    name = option.rpartition(".")[2]
    siblings = {known.rpartition(".")[2]: known for known in _siblings(option)}
    elsewhere = {known.rpartition(".")[2]: known for known in reversed(list(_all_options()))}
    for options, cutoff in ((elsewhere, 1.0), (siblings, 0.6), (elsewhere, 0.7)):
        if hint := nearest(name, options, cutoff):
            return options[hint]
    return None


def _merge(config: Any, layer: _Layer) -> Any:
    try:
        if layer.list_item is None:
            return OmegaConf.unsafe_merge(config, layer.values)  # both are ours alone, and this copies neither
        OmegaConf.update(config, layer.list_item, OmegaConf.select(layer.values, layer.list_item), force_add=True)
        return config
    except OmegaConfBaseException as error:
        option = error.full_key or "?"
        hint = _hint_of(option)
        if hint is None:
            raise ConfigError(f"{layer.source}: {option}: {first_line(error)}") from None
        option = _LIST_INDEX.sub("", option)
        value = OmegaConf.select(layer.values, option)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        raise ConfigError(f"{layer.source}: {option}={_shown(value)} must be {_in_words(hint)}") from None


def _hint_of(option: str) -> Any:
    """The declared type of a dotted option; None if it has none."""
    hint: Any = Config
    for name in _LIST_INDEX.sub("", option).split("."):
        section = _dataclass_in(hint)
        hint = typing.get_type_hints(section).get(name) if section else None
    return hint


def _dataclass_in(hint: Any) -> type | None:
    return next((kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None)  # type: ignore[return-value]


_WORDS: dict[Any, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "booleans"),
    str: ("a text", "texts"),
    type(None): ("null", "nulls"),
}


def _in_words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, arguments))
    if origin is list:
        return f"a list of {_WORDS[arguments[0]][1]}" if arguments[0] in _WORDS else "a list"
    if dataclasses.is_dataclass(hint):
        return "a mapping of options"
    return _WORDS[hint][0] if hint in _WORDS else str(hint)


def _shown(value: Any) -> str:
    """A value in YAML's notation: null and true, not None and True."""
    return json.dumps(value, default=str)
