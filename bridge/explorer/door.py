"""What the server answers at all: gradio has routes for more than this page, and not every one of them asks for the password.

Some of its routes fetch addresses, convert videos or end the sessions of others, and a request that no page sends ends in a
traceback.  So everything comes through here first: what the page does not use is not there, and a request that it cannot have
sent is refused in one line.
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

#: Where a page asks for an event.
JOIN = "/gradio_api/queue/join"
#: What the page that asks for the password is made of, and what gradio asks itself when it starts.
_OPEN = re.compile(
    r"/|/login/?|/(assets|static|svelte)/.+|(/gradio_api)?/theme\.css|/(favicon\.ico|manifest\.json|robots\.txt)|/gradio_api/startup-events"
)
#: What else a browser asks for. A file is one that was uploaded: its name is checked by gradio.
_USED = re.compile(r"/config/?|/gradio_api/((queue/(join|data)|upload|upload_progress|app_id|info)/?|heartbeat/\w+|file=/.+)")
#: Bytes of a request with a file, and of any other: a pasted configuration may be too long, and is then told so.
_MOST_UPLOADED, _MOST = MAX_BYTES + 2**16, 8 * 2**20
_FILE = re.compile(r"[0-9a-f]{64}/[^/\\\0]{1,255}")


class _Refused(Exception):
    """A request that no page sends."""

    status = 400


class _TooLong(_Refused):
    """One that is longer than any of the page's."""

    status = 413


class Door:
    """Stands in front of gradio's routes: a middleware of its application.

    Args:
        app: what comes behind.
        uploads: folder of the uploaded files.
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
        """The request's body, bounded; that of an event is read and looked at."""
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
    """The status of a request that is not let in; 0 for one that is."""
    path, app = scope["path"], scope["app"]
    if _OPEN.fullmatch(path):
        return 0
    if not _USED.fullmatch(path):
        return 404
    tokens = HTTPConnection(scope).cookies.values()
    return 0 if app.auth is None or any(token in app.tokens for token in tokens) else 401


def check_event(event: Any, functions: Any, uploads: str) -> None:
    """Raise what is wrong with the body of an event: it names a function of the page, and has a plain value for each input.

    The only value that is an object is an uploaded file: gradio would fetch any other address.
    """
    function = functions[event["fn_index"]]
    if len(event["data"]) != len(function.inputs):
        raise _Refused(f"{len(event['data'])} values for {len(function.inputs)} inputs")
    for value, component in zip(event["data"], function.inputs, strict=True):
        if isinstance(component, File) and not (value is None or isinstance(value, dict)):
            raise _Refused("a file that is none")
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
    """Reads so many bytes at most."""
    left = most

    async def read() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _TooLong(f"more than {most:,} bytes")
        return message

    return read
