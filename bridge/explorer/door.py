"""Filters the requests to the server: gradio has routes that this page does not use, and not all of them ask for the password.

Some of these routes fetch addresses, convert videos or end the sessions of others, and malformed requests end in a traceback.
So all requests pass this middleware first: routes that the page does not use are not found, and requests that the page cannot
have sent are refused, with one line in the log.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from os.path import join
from typing import Any

from gradio import File
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse

from bridge.report.run_file import MAX_BYTES

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: The route by which the page triggers an event.
JOIN = "/gradio_api/queue/join"
#: Routes open to all: those of the login page, and one that gradio itself requests when it starts.
_OPEN = re.compile(
    r"/|/login/?|/(assets|static|svelte)/.+|(/gradio_api)?/theme\.css|/(favicon\.ico|manifest\.json|robots\.txt)|/gradio_api/startup-events"
)
#: The other routes that a browser requests. Files are uploaded ones; gradio checks their names.
_USED = re.compile(r"/config/?|/gradio_api/((queue/(join|data)|upload|upload_progress|app_id|info)/?|heartbeat/\w+|file=/.+)")
#: Most bytes of a request with a file, and of any other (the page itself reports a configuration that is too long).
_MOST_UPLOADED, _MOST = MAX_BYTES + 2**16, 8 * 2**20
_FILE = re.compile(r"[0-9a-f]{64}/[^/\\\0]{1,255}")


class _Refused(Exception):
    """The page does not send such a request."""

    status = 400


class _TooLong(_Refused):
    """The request is longer than any that the page sends."""

    status = 413


class Door:
    """Middleware of gradio's application that runs before its routes.

    Args:
        app: the application behind it.
        uploads: the folder of the uploaded files.
    """

    def __init__(self, app: Any, uploads: str) -> None:
        self._app, self._uploads = app, uploads

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        answered = False

        async def sent(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            status = refusal(scope) if scope["type"] == "http" else 0
            if not status:
                await self._app(scope, await self._checked(scope, receive), sent)
        except Exception as error:
            status = error.status if isinstance(error, _Refused) else 400
            logger.warning("%s %.80r is not answered: %.200s", scope["method"], scope["path"], repr(error))
        if status and not answered:
            await PlainTextResponse(_SAYS[status], status)(scope, receive, sent)

    async def _checked(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        """The bounded body of a request; that of an event is read and checked first."""
        if scope["type"] != "http":
            return receive
        bounded = _bounded(receive, _MOST_UPLOADED if scope["path"].rstrip("/").endswith("/upload") else _MOST)
        if scope["path"].rstrip("/") != JOIN:
            return bounded
        body, more = b"", True
        while more:
            message = await bounded()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        check_event(json.loads(body), scope["app"].get_blocks().fns, self._uploads)
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again


_SAYS = {
    400: "This request is not one of the page's.",
    401: "This page asks for a password; open it in a browser.",
    404: "There is nothing here.",
    413: "This request is too long.",
}


def refusal(scope: MutableMapping[str, Any]) -> int:
    """The HTTP status with which a request is refused; 0 if it is accepted."""
    path, app = scope["path"], scope["app"]
    if _OPEN.fullmatch(path):
        return 0
    if not _USED.fullmatch(path):
        return 404
    tokens = HTTPConnection(scope).cookies.values()
    return 0 if app.auth is None or any(token in app.tokens for token in tokens) else 401


def check_event(event: Any, functions: Any, uploads: str) -> None:
    """Raise an exception unless the body of an event names a function of the page and has a plain value for each of its inputs.

    The only objects allowed among the values are uploaded files: gradio would fetch any other address.
    """
    function = functions[event["fn_index"]]
    if len(event["data"]) != len(function.inputs):
        raise _Refused(f"{len(event['data'])} values for {len(function.inputs)} inputs")
    for value, component in zip(event["data"], function.inputs, strict=True):
        if isinstance(component, File) and not (value is None or isinstance(value, dict)):
            raise _Refused("not a file")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, list) or (isinstance(item, dict) and not _is_uploaded(item, uploads)):
                raise _Refused("a value that no control has")


def _is_uploaded(item: dict[str, Any], uploads: str) -> bool:
    path, nested = item.get("path"), [value for key, value in item.items() if key != "meta"]
    begin = join(uploads, "")
    return (
        isinstance(path, str)
        and path.startswith(begin)
        and _FILE.fullmatch(path[len(begin) :]) is not None
        and not any(isinstance(value, (dict, list)) for value in nested)
    )


def _bounded(receive: Receive, most: int) -> Receive:
    """``receive`` that raises after ``most`` bytes."""
    left = most

    async def read() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _TooLong(f"more than {most:,} bytes")
        return message

    return read
