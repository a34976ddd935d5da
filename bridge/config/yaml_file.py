"""A YAML file as options; one sentence says if it is not YAML, not text, not a file, too large or too deep."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bridge.flops.shapes import ConfigError

#: A recipe has a few KiB.
MAX_BYTES = 2**20
#: Options are at most a few levels deep; what reads them is recursive.
MAX_DEPTH = 32
#: Characters of all texts with a ``${reference}`` together: parsing one takes milliseconds per hundred characters.
MAX_REFERENCES = 2000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path) -> DictConfig:
    """The options in a file.

    Raises:
        ConfigError: one sentence with the place and the fault.
    """
    values = _loaded(path, lambda text: OmegaConf.load(io.StringIO(text)))
    if not isinstance(values, DictConfig):
        raise ConfigError(f"{path} holds a list; write `section: {{option: value}}`")
    if not values:
        raise ConfigError(f"{path} is empty; a recipe sets at least model.num_layers and model.hidden_size")
    return values


def read_foreign(path: Path) -> Any:
    """The plain YAML content of another program's file, without our references and options.

    Raises:
        ConfigError: one sentence with the place and the fault.
    """
    return _loaded(path, lambda text: yaml.load(text, _LOADER))


def _loaded(path: Path, load: Callable[[str], Any]) -> Any:
    text = _text(path)
    with sentences(str(path), lambda error: f"{path}{_place(error)} is not valid YAML: {error.problem or error.context}"):
        check(text, str(path))
        return load(text)


def _text(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe or a device has no end
            raise ConfigError(f"{path} is not a regular file; save its content in one")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES // 2**20} MiB; a recipe has a few KiB")
        return content.decode()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None


def check(text: str, source: str) -> None:
    """Refuse text that would take long to parse, before parsing it."""
    depth = references = 0
    for event in yaml.parse(text, _LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{source} is nested more than {MAX_DEPTH} levels deep; write `section: {{option: value}}`")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            references += len(event.value)
    if references > MAX_REFERENCES:
        raise ConfigError(f"{source} has more than {MAX_REFERENCES} characters of ${{references}}; write the values themselves")


@contextmanager
def sentences(source: str, invalid: Callable[[yaml.MarkedYAMLError], str]) -> Iterator[None]:
    """Turn every error of reading YAML into a ConfigError.

    Args:
        source: what the error is about.
        invalid: the sentence about text that is not YAML.
    """
    try:
        yield
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        raise ConfigError(invalid(error)) from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{source} is not valid YAML: {first_line(error)}") from None
    except OSError:  # OmegaConf's own complaint about a file that holds a bare value
        raise ConfigError(f"{source} holds no options; write `section: {{option: value}}`") from None
    except RecursionError:  # aliases nest as well
        raise ConfigError(f"{source} is nested too deeply; write `section: {{option: value}}`") from None
    except ValueError as error:  # a number of 5,000 digits
        raise ConfigError(f"{source} holds a value that cannot be read: {first_line(error)}") from None
    except (LookupError, AttributeError):  # what yaml's constructors raise at `!!bool abc` and `!!timestamp abc`
        raise ConfigError(f"{source} holds a value that does not match its tag; leave `!!` out") from None


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def first_line(error: Exception) -> str:
    """The first line of an error message."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:197]}..."


def plain(values: DictConfig) -> Any:
    """Options as dictionaries and lists, with unresolved references."""
    return OmegaConf.to_container(values, resolve=False)
