"""Several users at one server: nobody sees what another one does, and what no page sends is refused in one line."""

from __future__ import annotations

import json
import logging
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any

import pytest

from bridge.explorer import page as pages
from bridge.explorer.page import serve

JSON = {"Content-Type": "application/json"}


class User:
    """A browser of one's own, as far as the server can tell."""

    def __init__(self, url: str, password: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        if password is not None:
            self.ask("/login", urllib.parse.urlencode({"username": "bridge", "password": password}).encode())
        config = json.loads(self.ask("/config"))
        self.ids = {part["props"]["elem_id"]: part["id"] for part in config["components"] if part["props"].get("elem_id")}
        self.refresh = max(config["dependencies"], key=lambda one: len(one["inputs"]))
        values = {part["id"]: part["props"].get("value") for part in config["components"]}
        self.values = {number: values[number] for number in self.refresh["inputs"]}

    def ask(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, headers or {})
        with self._opener.open(request, timeout=60) as answer:
            return answer.read()

    def event(self, **changes: Any) -> dict[str, Any]:
        data = [changes.get(name, value) for name, value in self._named()]
        return {"data": data, "fn_index": self.refresh["id"], "session_hash": uuid.uuid4().hex}

    def _named(self) -> list[tuple[str, Any]]:
        names = {number: name for name, number in self.ids.items()}
        return [(names[number], value) for number, value in self.values.items()]

    def join(self, event: dict[str, Any]) -> bytes:
        return self.ask("/gradio_api/queue/join", json.dumps(event).encode(), JSON)

    def headline(self, tab: str, **changes: Any) -> str:
        """What the page says after a change."""
        event = self.event(**{"open-tab": tab, **changes})
        self.join(event)
        told = self.ask(f"/gradio_api/queue/data?session_hash={event['session_hash']}").decode()
        messages = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
        (done,) = [message for message in messages if message["msg"] == "process_completed"]
        assert done["success"], done
        return done["output"]["data"][self.refresh["outputs"].index(self.ids[f"{tab}-headline"])]

    def upload(self, content: bytes) -> dict[str, Any]:
        """What the page then knows of a file."""
        opening = b'--cut\r\nContent-Disposition: form-data; name="files"; filename="metrics.jsonl"\r\n\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=cut"}
        (path,) = json.loads(self.ask("/gradio_api/upload", opening + content + b"\r\n--cut--\r\n", headers))
        return {"path": path, "orig_name": "metrics.jsonl", "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def served() -> Any:
    blocks, url = serve(block=False)
    yield blocks, url
    blocks.close()


def status(call: Any) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        call()
    assert b"Traceback" not in error.value.read()
    return error.value.code


def flops(headline: str) -> int:
    return int(re.search(r'data-fact="flops" data-value="(\d+)"', headline)[1])


def run(mfu: float) -> bytes:
    return "".join(json.dumps({"step": step, "throughput/mfu": mfu}) + "\n" for step in (10, 20, 30)).encode()


def test_two_users_do_not_see_each_other(served):
    """Each turns between a model, a run of one's own and, one of them, an error; both at once."""
    wrong: list[str] = []

    def use(model: str, expected: int, mfu: float, config: str) -> None:
        user = User(served[1])
        file = user.upload(run(mfu))
        for _ in range(3):
            if flops(user.headline("model", model=model)) != expected:
                wrong.append(model)
            if f'data-value="{mfu}"' not in user.headline("run", **{"run-file": file}):
                wrong.append(str(mfu))
            if config and "is not valid JSON" not in user.headline("model", config=config):
                wrong.append(config)

    one = User(served[1])
    users = [(name, flops(one.headline("model", model=name))) for name in ("llama3-8b", "qwen3-8b")]
    threads = [
        threading.Thread(target=use, args=(*user, mfu, config))
        for user, mfu, config in zip(users, (0.25, 0.5), ("", "{"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert users[0][1] != users[1][1]
    assert wrong == []


#: Changes of controls that no page makes, and what it says then.
IMPOSSIBLE = {
    "a model of no name": ({"model": "../../etc/passwd"}, "is not one of the options"),
    "a long one": ({"model": "x" * 10_000}, "x... is not one of the options"),
    "no number": ({"model-length": "x"}, "must be an integer from 128"),
    "below the range": ({"model-batch": -3}, "-3 must be an integer from 1"),
    "a list": ({"model-convention": ["exact"]}, "is not one of the options"),
    "half a letter": ({"config": "\ud800"}, "is not valid JSON"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_value_is_a_sentence(served, name, capfd):
    changes, said = IMPOSSIBLE[name]
    assert said in User(served[1]).headline("model", **changes)
    assert "Traceback" not in capfd.readouterr().err


def test_what_no_page_sends_is_refused_in_one_line(served, capfd, caplog):
    user = User(served[1])
    file = user.upload(run(0.5))
    folder = file["path"].rsplit("/", 2)[0]
    paths = ("/etc/passwd", f"{folder}/../../etc/passwd", "http://127.0.0.1:1/", folder, f"{folder}/{'x' * 300}", "\0", None)
    events = [user.event(**{"run-file": {**file, "path": path}}) for path in paths]
    events += [user.event(**{"run-file": value}) for value in ("x", 3, [], {"a": 1}, [file, [file]])]
    events += [user.event(model={**file, "path": "http://example.com/"}), user.event() | {"fn_index": 999}]
    events += [user.event() | {"data": []}, user.event() | {"data": None}, {"data": []}]
    with caplog.at_level(logging.WARNING, "bridge.explorer.door"):
        assert [status(lambda event=event: user.join(event)) for event in events] == [400] * len(events)
    assert len(caplog.records) == len(events)
    assert all(len(record.getMessage()) < 400 for record in caplog.records)
    for path in ("file=http://example.com/", "component_server", "process_recording", "run/refresh", "deep_link?session_hash=x"):
        assert status(lambda path=path: user.ask(f"/gradio_api/{path}", b"{}" if "file" not in path else None, JSON)) == 404
    assert status(lambda: user.ask("/gradio_api/queue/join", b" " * (9 * 2**20), JSON)) == 413
    assert "Traceback" not in capfd.readouterr().err
    assert flops(user.headline("model"))


def test_what_visitors_were_shown_is_not_kept_for_ever(served, monkeypatch):
    blocks, url = served
    user = User(url)
    assert blocks.state_session_capacity == pages._VISITORS
    remembered = blocks.server_app.state_holder
    user.headline("model")
    known = len(remembered.session_data)
    monkeypatch.setattr(remembered, "capacity", known)
    for _ in range(2):
        user.headline("model")
    assert len(remembered.session_data) == known


def test_a_password_holds_for_every_route():
    """Of gradio's own list, but for what the page is made of that asks for it."""
    blocks, url = serve(password="open sesame", block=False)
    try:
        routes = {path.removesuffix("/") for path in paths_of(blocks.server_app.routes)}
        assert {"/config", "/gradio_api/queue/join", "/gradio_api/heartbeat/{session_hash}", "/gradio_api/cancel"} <= routes
        answered = {path for path in routes if not refused(url.rstrip("/") + re.sub(r"{[^}]*}", "1", path))}
        assert answered <= {"", "/login", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", *ASKED_AT_THE_START}
        assert b"components" in User(url, "open sesame").ask("/config")
    finally:
        blocks.close()


#: By the page that asks for the password, and by gradio itself.
ASKED_AT_THE_START = ("/gradio_api/theme.css", "/gradio_api/startup-events")


def paths_of(routes: Any, prefix: str = "") -> set[str]:
    found = set()
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            found |= paths_of(inner.routes, prefix)
        elif hasattr(route, "path"):
            found.add(prefix + route.path)
    return found


def refused(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return bool(answer.status != 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 404)
