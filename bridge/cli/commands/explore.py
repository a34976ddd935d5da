"""``bridge explore``: the interactive page, on this machine."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os

from bridge.cli import arguments as options
from bridge.flops import ConfigError

logger = logging.getLogger(__name__)

_EXAMPLES = {
    "on this machine, in the browser": "bridge explore --open",
    "for others, with a password in BRIDGE_PASSWORD": "bridge explore --host 0.0.0.0 --port 8080",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "explore",
        run,
        "Serve a page to explore what models cost (by component and length, side by side, fine-tuned, at "
        "inference) and what a finished run reached. It fetches nothing from the network, and by default only this "
        "machine can open it.",
        _EXAMPLES,
        json=False,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1; 0.0.0.0: every network)")
    parser.add_argument("--port", type=_port, help="port to listen on (default: the first free port from 7860)")
    parser.add_argument(
        "--password",
        default=os.environ.get("BRIDGE_PASSWORD"),
        help="password to ask for, with the user name bridge; prefer BRIDGE_PASSWORD, which lists of processes do not show",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run(arguments: argparse.Namespace) -> int:
    try:
        from bridge.explorer.page import serve
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "plotly"):
            raise
        raise ConfigError(f"`bridge explore` needs {error.name}; pip install gradio plotly") from None
    if not arguments.password and not _is_here(arguments.host):
        logger.warning(
            "--host %s: anyone who reaches this address can view and upload; set --password to require a password", arguments.host
        )
    serve(arguments.host, arguments.port, password=arguments.password, open_browser=arguments.open)
    return 0


def _is_here(host: str) -> bool:
    """Whether only this machine can open the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port from 1 to 65535")
    return int(text)
