"""Hides secrets from files and services: values with the name of a secret, and values that look like one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_ANYWHERE = re.compile(r"api_key|apikey|password|passwd|secret|credential|access_token|auth_token|hf_token")
_WORDS = frozenset(("auth", "authorization", "bearer", "cookie", "passphrase", "pat", "signing", "webhook"))
_KEYS = frozenset(("api", "private", "access", "signing", "ssh", "encryption", "auth", "account", "shared", "deploy"))
#: Words before ``token`` in the names of tokens that are no secrets: ``pad_token``.
_TEXT_TOKENS = frozenset(
    (
        *("bos", "eos", "eod", "pad", "unk", "sep", "cls", "mask", "start", "end", "special"),
        *("text", "image", "audio", "video"),
    )
)

_INTERPOLATION = re.compile(r"\$\{[\w.\[\]-]+(:[\w.]+)?\}")
"""An interpolation is a reference to a value, not the value."""

_LOGIN_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")
_LOOKS_SECRET = tuple(
    (re.compile(pattern), rf"\g<1>{HIDDEN}")
    for pattern in (
        r"([?&;][\w-]*(?:token|key|secret|passw|pwd|sig|auth|credential)[\w-]*=)[^&\s#]+",
        r"(https://hooks\.slack\.com/\w+/|https://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/)\S+",
        r"((?i:\bbearer )\s*)\S{4,}",
        r"(\bBasic )[A-Za-z0-9+/]{12,}={0,2}(?=$|\s)",
        r"()\b(?:gh[pousr]_|github_pat_|glpat-|dckr_pat_|xox[abeprs]-|AKIA|ASIA|AIza)[\w-]{4,}",
        r"()\b(?:hf_|npm_|pypi-)[A-Za-z0-9]{16,}",
        r"()\bsk-[\w-]{16,}",
        r"()\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
        r"()(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*)",
    )
)
_SHORTEST = 6
"""The fewest characters of a secret in the environment that is searched for: ``1`` and ``true`` occur everywhere."""


def without_secrets(options: Any) -> Any:
    """The options with secrets masked at any depth: by name, by form, and secret values of the environment."""
    return _masked(options, [value for name, value in os.environ.items() if len(value) >= _SHORTEST and is_secret(name)])


def without_login(address: str) -> str:
    """An address without its login: ``https://user:password@host`` becomes ``https://***@host``."""
    return _LOGIN_IN_ADDRESS.sub(f"{HIDDEN}@", address)


def is_secret(name: str) -> bool:
    """Whether an option of this name holds a secret: ``api_key``, ``X-Api-Token``, ``private_key``; not ``pad_token``."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_").split("_")
    if _ANYWHERE.search("_".join(words)) or _WORDS.intersection(words):
        return True
    before = words[-2] if len(words) > 1 else ""
    return (words[-1] == "token" and before not in _TEXT_TOKENS) or (words[-1] == "key" and before in {"", *_KEYS})


def _masked(options: Any, known: list[str]) -> Any:
    if isinstance(options, Mapping):
        return {
            key: HIDDEN if is_secret(str(key)) and _may_hide(str(key), value) else _masked(value, known)
            for key, value in options.items()
        }
    if isinstance(options, (list, tuple)):
        return [_masked(item, known) for item in options]
    return _masked_text(options, known) if isinstance(options, str) else options


def _may_hide(name: str, value: Any) -> bool:
    if isinstance(value, str):
        return not _INTERPOLATION.fullmatch(value)
    return bool(_ANYWHERE.search(name.lower())) or isinstance(value, (list, tuple, Mapping))


def _masked_text(text: str, known: list[str]) -> str:
    for secret in known:
        text = text.replace(secret, HIDDEN)
    text = without_login(text)
    for pattern, hidden in _LOOKS_SECRET:
        text = pattern.sub(hidden, text)
    return text
