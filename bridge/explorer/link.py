"""The page's state in its address: only values that differ from the initial ones, so that links stay short.

A link includes a pasted configuration, compressed; the size to which an untrusted link unpacks is bounded.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from bridge.explorer.controls import Control, Values
from bridge.explorer.sources import MAX_CONFIG_BYTES
from bridge.flops import ConfigError

#: Browsers and proxies cut addresses that are much longer.
MAX_PACKED_LENGTH = 4000
CONFIG = "config"


def write(sections: Mapping[str, Sequence[Control]], values: Mapping[str, Values], extra: Mapping[str, str]) -> str:
    """The query string of a state.

    Args:
        sections: the controls of each tab; all tabs share the section "".
        values: the values of the controls, by section and key.
        extra: further texts; empty ones are left out.
    """
    pairs = {key: text for key, text in extra.items() if text}
    for section, controls in sections.items():
        for control in controls:
            value = values[section][control.key]
            if value != control.default:
                pairs[_name(section, control)] = control.write(value)
    return urlencode(pairs)


def read(sections: Mapping[str, Sequence[Control]], query: str) -> tuple[dict[str, Values], dict[str, str], list[str]]:
    """The values of a query string, its texts that belong to no control, and a sentence for each problem.

    An impossible value is reported, and its control keeps the initial value.
    """
    values: dict[str, Values] = {}
    problems = []
    try:
        given = dict(parse_qsl(query.removeprefix("?"), keep_blank_values=True, max_num_fields=200))
    except ValueError:
        given, problems = {}, ["This link is not understood. It has too many fields"]
    for section, controls in sections.items():
        values[section] = {}
        for control in controls:
            value: Any = control.default
            text = given.pop(_name(section, control), None)
            if text is not None:
                try:
                    value = control.read(text)
                except ConfigError as error:
                    problems.append(f"This link is not understood. {error}")
            values[section][control.key] = value
    return values, given, problems


def _name(section: str, control: Control) -> str:
    return f"{section}.{control.key}" if section else control.key


def pack(config: str) -> str:
    """A configuration as a short text for a link; empty if it does not fit."""
    try:
        small = json.dumps(json.loads(config), separators=(",", ":"))
    except (ValueError, RecursionError):
        return ""
    packed = base64.urlsafe_b64encode(zlib.compress(small.encode(), 9)).decode().rstrip("=")
    return packed if len(packed) <= MAX_PACKED_LENGTH else ""


def unpack(packed: str) -> str:
    """The configuration in a link, indented; ConfigError if it is damaged."""
    try:
        raw = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        stream = zlib.decompressobj()
        text = stream.decompress(raw, MAX_CONFIG_BYTES)
        if stream.unconsumed_tail:
            raise ValueError("too long")
        return json.dumps(json.loads(text), indent=2)
    except (ValueError, zlib.error, binascii.Error, RecursionError):
        raise ConfigError("This link is not understood. Its configuration is damaged; paste the config.json instead") from None
