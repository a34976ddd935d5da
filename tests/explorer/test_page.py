"""The page without a browser: how it refreshes and restores, and that serving it talks to nobody."""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest

from bridge.cli.main import main
from bridge.config import ConfigError
from bridge.explorer import html, link
from bridge.explorer.controls import defaults
from bridge.explorer.page import MAX_UPLOAD, SECTIONS, TABS, Page, contents, serve, shown
from bridge.explorer.sources import OWN_MODEL


@pytest.fixture(scope="module")
def page():
    return Page()


def data(page, tab="model", config="", file=None, **changes):
    """What the browser sends: every widget's value."""
    sent = {item: control.default for section, items in page.widgets.items() for key, item in items.items()
            for control in SECTIONS[section] if control.key == key}  # fmt: skip
    sent |= {page.widgets[""]["tab"]: tab, page.config: config, page.run: file}
    return sent | {page.widgets[tab][key]: value for key, value in changes.items()}


def test_every_control_has_a_widget(page):
    assert {s: set(items) for s, items in page.widgets.items()} == {
        s: {c.key for c in controls} for s, controls in SECTIONS.items()
    }


@pytest.mark.parametrize("tab", [key for key in TABS if key != "run"])
def test_refresh_shows_the_open_tab_alone(page, tab):
    result = page.refresh(data(page, tab))
    assert set(result) == {page.headlines[tab], page.tables[tab], *page.plots[tab], *page.pickers.values(), page.query}
    assert 'data-fact="' in result[page.headlines[tab]]
    assert result[page.query] == ("" if tab == "model" else f"tab={tab}")


@pytest.mark.parametrize(
    ("tab", "there"),
    [("model", {"model", "own"}), ("check", {"model", "own"}), ("compare", {"own"}), ("blt", set()), ("run", set())],
)
def test_a_model_is_picked_where_it_counts(page, tab, there):
    result = page.refresh(data(page, tab))
    assert {key for key, item in page.pickers.items() if result[item]["visible"] is True} == there
    assert {result[item]["visible"] for item in page.pickers.values()} <= {True, "hidden"}


def test_plots_save_in_the_picked_format(page):
    sent = data(page) | {page.widgets[""]["save"]: "svg"}
    drawn = json.loads(page.refresh(sent)[page.plots["model"][0]]["value"].plot)
    assert drawn["config"]["toImageButtonOptions"] == {"format": "svg", "filename": "bridge-model-1", "scale": 1}
    assert drawn["config"]["displayModeBar"] is True


def test_an_error_takes_the_place_of_the_numbers(page):
    result = page.refresh(data(page, config="{"))
    assert 'role="alert"' in result[page.headlines["model"]]
    assert all(result[item]["visible"] is False for item in page.plots["model"])
    assert result[page.tables["model"]] == ""


def test_a_cleared_number_is_an_error_and_leaves_the_link_alone(page):
    result = page.refresh(data(page, length=None, batch=4))
    assert "Sequence length, tokens: None must be an integer from 128 to 10,485,760" in result[page.headlines["model"]]


def test_a_run_is_waited_for(page):
    result = page.refresh(data(page, "run"))
    assert "drop a file" in result[page.headlines["run"]]
    assert "alert" not in result[page.headlines["run"]]


def test_restore_sets_everything_a_link_says(page):
    config = '{"model_type": "llama"}'
    packed = link.pack(config)
    result = page.restore(f"?tab=finetune&finetune.rank=64&finetune.targets=linear_fc1~linear_fc2&model=qwen3-8b&config={packed}")
    assert result[page.widgets["finetune"]["rank"]] == 64
    assert result[page.widgets["finetune"]["targets"]] == ["linear_fc1", "linear_fc2"]
    assert result[page.widgets[""]["model"]] == "qwen3-8b"
    assert result[page.widgets[""]["tab"]] == "finetune"
    assert json.loads(result[page.config]) == json.loads(config)
    assert result[page.problem] == ""
    assert set(result) == {item for items in page.widgets.values() for item in items.values()} | {
        page.config,
        page.tabs,
        page.problem,
    }


def test_restore_reports_what_it_does_not_understand(page):
    result = page.restore("?model.length=x&config=x")
    assert result[page.problem].count('role="alert"') == 2


def test_uploads_are_taken_as_text_or_refused(page, tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama"}')
    assert page.take({"path": str(file)}) == ('{"model_type": "llama"}', None, "")
    for content in (b"\xff\xfe", b"[", b"x" * 300_000):
        file.write_bytes(content)
        _, cleared, message = page.take({"path": str(file)})
        assert cleared is None
        assert "alert" in message


def test_an_unexpected_failure_is_one_sentence(caplog):
    def fail():
        raise RuntimeError("<secret>")

    text, view = shown(fail, "x")
    assert view is None
    assert "RuntimeError" in text
    assert "secret" not in text
    assert "Traceback" in caplog.text


def test_html_escapes_facts():
    values = {section: defaults(controls) for section, controls in SECTIONS.items()}
    values["compare"]["models"] = (OWN_MODEL,)
    with pytest.raises(ConfigError):
        contents("compare", values)
    assert html.message("<b>") == '<p class="problem" role="alert">&lt;b&gt;</p>'


# ---- the server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served():
    blocks, url = serve(block=False)
    yield url
    blocks.close()


def fetch(url, body=None, headers=None):
    with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=60) as answer:
        return answer.read()


def test_it_listens_on_this_machine_alone(served):
    assert served.startswith("http://127.0.0.1:")
    port = int(served.rstrip("/").rsplit(":", 1)[1])
    with socket.socket() as other:
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", port)) != 0  # loopback too, but not the address that was asked for


def test_the_page_names_no_foreign_address_to_load_from(served):
    text = fetch(served).decode()
    head = text[text.index("<head>") : text.index("</head>")]
    for attribute in ("src=", "href="):
        for part in head.split(attribute)[1:]:
            assert not part.lstrip("\"'").startswith(("http:", "https:", "//")), part[:80]
    assert "fonts.googleapis" not in text


def test_uploads_are_bounded(served):
    boundary = "x" * 20
    opening = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="metrics.jsonl"\r\n\r\n'.encode()
    body = opening + b"y" * (MAX_UPLOAD + 1) + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as error:
        fetch(f"{served.rstrip('/')}/gradio_api/upload", body, headers)
    if isinstance(error.value, urllib.error.HTTPError):
        assert error.value.code == 413


def test_a_password_is_asked_for():
    blocks, url = serve(password="open sesame", block=False)
    with pytest.raises(urllib.error.HTTPError) as error:
        fetch(f"{url}config")
    assert error.value.code == 401
    answer = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    answer.open(f"{url}login", urllib.parse.urlencode({"username": "bridge", "password": "open sesame"}).encode(), timeout=60)
    assert b"components" in answer.open(f"{url}config", timeout=60).read()
    blocks.close()


def test_a_port_that_is_taken_is_one_sentence():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="choose another --host or --port"):
            serve(port=other.getsockname()[1], block=False)


def test_serving_connects_to_nobody_else():
    code = """
import sys
calls = []
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and not args[1][0].startswith(("127.", "::1", "localhost")):
        calls.append(args[1])
    if event == "socket.getaddrinfo" and args[0] not in (None, "127.0.0.1", "localhost", b"127.0.0.1"):
        calls.append(args[:2])
sys.addaudithook(watch)
import time, urllib.request
from bridge.explorer.page import serve
blocks, url = serve(block=False)
urllib.request.urlopen(url).read()
time.sleep(2)  # threads of their own would ask for versions or telemetry now
blocks.close()
print(calls)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bridge.explorer.page", None)
    with pytest.raises(ModuleNotFoundError):  # of our own: no advice about extras
        main(["explore"])
    monkeypatch.delitem(sys.modules, "bridge.explorer.page")
    for name in [name for name in sys.modules if name == "gradio" or name.startswith("gradio.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["explore"]) == 2
    assert "pip install gradio plotly" in capsys.readouterr().err
