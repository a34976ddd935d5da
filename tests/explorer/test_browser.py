"""The page in a real Chromium: controls are moved, numbers are read, and they are those of the command line."""

import json
import tempfile
import urllib.request
from pathlib import Path

import pytest

from bridge.cli.main import main
from bridge.explorer.tabs import run
from bridge.planning.exhibits.byte_latent import compare
from bridge.report.chart import fill
from bridge.report.run_file import read_run
from tests.explorer.browser import Browser, find_chromium, serving
from tests.report.test_run_file import row, write

pytestmark = [
    pytest.mark.all,
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"),
]
pytest.importorskip("selenium", reason="drives the browser; pip install selenium")

from selenium.webdriver.common.keys import Keys  # noqa: E402

CONFIG = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
          "vocab_size": 1000}  # fmt: skip
TITLES = ("Model", "Compare", "Check", "Fine-tune", "Inference", "Plan", "BLT against BPE", "Run")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with serving() as url:
        one = Browser(url, tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("downloads"))
        yield one
        one.close()


@pytest.fixture(autouse=True)
def _nothing_leaves_this_machine(browser):
    """Holds for everything that the tests of this file do."""
    yield
    assert browser.foreign_requests() == []
    assert browser.complaints() == []


def command(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_model_moves_with_its_controls(browser, capsys):
    browser.open()
    said = command(capsys, "flops", "llama3-8b", "model.seq_length=4096")
    browser.until_fact("flops", said["flops"])

    browser.type_number("model-length", 8192)
    browser.push("model-batch", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)  # from the keyboard: 1, 2, 3
    said = command(capsys, "flops", "llama3-8b", "model.seq_length=8192", "--batch-size", "3")
    browser.until_fact("flops", said["flops"])
    assert browser.fact("parameters") == str(said["parameters"]["total"])
    components = {name.replace(" ", "_"): int(cells["FLOPs per step"]) for name, cells in browser.table().items()}
    assert components == said["components"]

    browser.pick("model", "qwen3-30b-a3b")
    browser.pick("model-convention", "exact")
    said = command(capsys, "flops", "qwen3-30b-a3b", "model.seq_length=8192", "--batch-size", "3", "--convention", "exact")
    browser.until_fact("flops", said["flops"])
    bars = 3 * len(said["components"])  # a pass each
    browser.until(lambda: len(browser.visible("#model-plot-0 .bars .point path")) == bars)


def test_a_layout_shows_its_stages(browser, capsys):
    browser.open("?model.pp=4&model.batch=16&model.dp=2")
    said = command(capsys, "flops", "llama3-8b", "model.seq_length=4096", "parallel.pipeline_model_parallel_size=4",
                   "--batch-size", "16")  # fmt: skip
    browser.until_fact("flops", said["flops"])
    assert float(browser.fact("flops_per_device")) == max(said["stages"]) / 2
    assert float(browser.fact("imbalance")) == said["pipeline"]["imbalance"]
    browser.until(lambda: len(browser.visible("#model-plot-2 .bars .point path")) == 4)

    browser.type_number("model-dp", 3)
    assert "train.global_batch_size=16 is not divisible" in browser.until(lambda: browser.only(".problem").text)
    browser.until(lambda: not browser.visible(".js-plotly-plot"))
    browser.type_number("model-dp", 4)
    browser.until(lambda: browser.visible("#model-plot-2 .js-plotly-plot"))


def test_the_address_holds_the_state(browser):
    browser.open("?__theme=dark")
    browser.until_fact("flops_per_token", 48249176064)  # 197628625158144 / 4096
    browser.type_number("model-length", 1024)
    browser.choose_tab("BLT against BPE")
    browser.type_number("blt-patch_size", 8)
    browser.until_fact("blt_total", compare(8.0, 2560, 10).blt_total)
    address = browser.until(lambda: "patch_size" in browser.driver.current_url and browser.driver.current_url)
    query = address.partition("?")[2]
    assert set(query.split("&")) == {"__theme=dark", "tab=blt", "model.length=1024", "blt.patch_size=8"}

    browser.open("?" + query)
    browser.until_fact("blt_total", compare(8.0, 2560, 10).blt_total)
    browser.choose_tab("Model")
    assert browser.only("#model-length input[type=number]").get_attribute("value") == "1024"
    browser.open("?model.length=many")
    browser.until(lambda: "This link is not understood." in browser.only("#problem").text)


def test_compare(browser, capsys):
    browser.open("?tab=compare&compare.models=llama3-8b~mixtral-8x7b&compare.length=1024")
    browser.check("compare-conventions", "exact")
    browser.until(lambda: len(browser.visible(".table tbody tr")) == 4)
    for model in ("llama3-8b", "mixtral-8x7b"):
        for convention in ("megatron", "exact"):
            said = command(capsys, "flops", model, "--sequence-lengths", "1024", "--convention", convention)
            assert str(said["flops"]) in browser.only(".table table").get_attribute("innerHTML")
    browser.until(lambda: len(browser.visible("#compare-plot-1 .scatterlayer .trace")) == 4)


def test_fine_tune(browser, capsys):
    browser.open("?tab=finetune")
    browser.type_number("finetune-rank", 64)
    browser.check("finetune-targets", "linear_fc1")
    said = command(capsys, "flops", "llama3-8b", "peft.dim=64", "peft.target_modules=[linear_qkv,linear_proj,linear_fc2]",
                   "--sequence-lengths", "4096", "--convention", "exact")  # fmt: skip
    browser.until(lambda: browser.fact("trainable") == str(said["parameters"]["trainable"]))
    assert float(browser.fact("flops_per_token")) == said["flops_per_token"]

    browser.check("finetune-method", "freeze parts")
    browser.until(lambda: "frozen parts" in browser.table())
    frozen = [f"decoder.layers.{i}" for i in range(16)] + ["embedding"]
    said = command(capsys, "flops", "llama3-8b", "peft.kind=freeze", f"peft.freeze=[{','.join(frozen)}]",
                   "--sequence-lengths", "4096", "--convention", "exact")  # fmt: skip
    browser.until(lambda: float(browser.fact("flops_per_token")) == said["flops_per_token"])


def test_inference(browser, capsys):
    browser.open("?tab=inference")
    browser.type_number("inference-batch", 8)
    browser.pick("inference-device", "H200")
    said = command(
        capsys, "inference", "llama3-8b", "--prompt", "900", "--generate", "294", "--batch", "8", "--device-name", "H200"
    )
    browser.until(lambda: browser.fact("tokens_per_second") == str(said["roofline"]["tokens_per_second"]))
    assert browser.fact("flops") == str(said["flops"])
    assert browser.fact("time_to_first_token") == str(said["roofline"]["time_to_first_token"])


def test_bytes_against_tokens(browser):
    browser.open("?tab=blt")
    for sliders, total, percent in (((4.4, 2560, 10), "1.35e+09", "+18.5 %"), ((10, 2560, 10), "7.78e+08", "-31.4 %"),
                                    ((8, 4096, 10), "1.69e+09", "-37.4 %")):  # fmt: skip
        for key, value in zip(("patch_size", "d_model", "local_layers"), sliders, strict=True):
            browser.type_number(f"blt-{key}", value)
        result = compare(*sliders)
        browser.until_fact("blt_total", result.blt_total)
        assert [browser.text(key) for key in ("bpe_per_byte", "blt_global", "blt_local", "blt_total", "advantage")] == [
            f"{result.bpe_per_byte:.2e}", f"{result.blt_global:.2e}", f"{result.blt_local:.2e}", total, percent,
        ]  # fmt: skip
        browser.until(lambda total=total: total in browser.only("#blt-plot-0 .textpoint:last-child").text)
    browser.push("blt-patch_size", Keys.HOME)
    browser.until_fact("blt_total", compare(1.0, 4096, 10).blt_total)
    browser.push("blt-local_layers", Keys.END)
    browser.until_fact("blt_total", compare(1.0, 4096, 24).blt_total)
    browser.type_number("blt-d_model", 512)
    browser.until(lambda: any("500 columns" in note.text for note in browser.visible(".notes li")))


def test_a_model_of_ones_own(browser, capsys, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG))
    browser.open()
    browser.unfold("config.json: a model of your own")
    for content, word in (
        ("{", "not valid JSON"),
        ("[1]", "holds a JSON list"),
        ('{"model_type": "llama", "hidden_size": "x"}', "must be a number"),
    ):
        bad = tmp_path / "bad.json"
        bad.write_text(content)
        browser.upload("upload", bad)
        browser.until(lambda word=word: any(word in e.text for e in browser.visible(".problem")), word)
    assert "Traceback" not in browser.script("return document.body.textContent")

    browser.open()
    browser.unfold("config.json: a model of your own")
    browser.upload("upload", file)
    said = command(capsys, "flops", str(file), "model.seq_length=4096")
    browser.until_fact("flops", said["flops"])
    address = browser.until(lambda: "config=" in browser.driver.current_url and browser.driver.current_url)
    browser.open("?" + address.partition("?")[2])  # the configuration travels in the link
    browser.until_fact("flops", said["flops"])


def test_a_run(browser, tmp_path):
    rows = [row(step) for step in range(10, 501, 10)]
    file = write(tmp_path / "metrics.jsonl", rows)
    browser.open("?tab=run")
    assert "drop a file" in browser.only(".notes").text
    browser.upload("run-file", file)
    browser.until_fact("steps", 500)
    assert browser.fact("total_flops") == str(rows[-1]["throughput/total_flops"])
    assert browser.table()["throughput/mfu"]["last"] == str(rows[-1]["throughput/mfu"])
    charts = [panel for panel in run.PANELS if fill(panel, read_run(file))]
    browser.until(lambda: len(browser.visible(".js-plotly-plot")) == len(charts))
    bad = tmp_path / "bad.jsonl"
    bad.write_text("no run\n")
    browser.open("?tab=run")
    browser.upload("run-file", bad)
    assert "holds no rows of metrics" in browser.only(".problem").text


def test_values_and_plots_are_taken_along(browser, capsys):
    browser.open()
    said = command(capsys, "flops", "llama3-8b", "model.seq_length=4096")
    browser.until_fact("flops", said["flops"])
    saved = browser.saved("bridge-model*.json", "button[data-save=json]")
    assert json.loads(saved.read_text())["facts"]["flops"] == said["flops"]
    lines = browser.saved("bridge-model*.csv", "button[data-save=csv]").read_text().splitlines()
    assert lines[0] == "component,flops,flops_per_token,share"
    assert sum(int(line.split(",")[1]) for line in lines[1:]) == said["flops"]

    browser.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    browser.only("button[data-copy=csv]").click()
    browser.until(lambda: "Copied." in browser.only(".export").text)
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, e => done('' + e))"
    assert browser.driver.execute_async_script(read).splitlines() == lines

    for kind, opening in (("png", b"\x89PNG\r\n"), ("svg", b"<svg")):
        browser.check("save", kind)
        browser.until(lambda kind=kind: ("save=svg" in browser.driver.current_url) == (kind == "svg"))
        picture = browser.saved(f"bridge-model-1.{kind}", "#model-plot-0 .modebar-btn[data-title*=ownload]")
        assert picture.read_bytes().startswith(opening)


def test_tabs_and_sliders_work_from_the_keyboard(browser):
    browser.open()
    browser.until(lambda: browser.fact("flops"))
    names, focused = set(), "return document.activeElement"
    browser.script("document.body.focus()")
    for _ in range(80):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        element = browser.script(focused)
        names.add(element.get_attribute("aria-label") or element.text)
    assert {"Model", "Compare", "BLT against BPE", "range slider for Sequence length, tokens", "Copy CSV"} <= names
    tab = next(e for e in browser.visible("button[role=tab]") if e.text == "Inference")
    tab.send_keys(Keys.ENTER)
    browser.until(lambda: browser.fact("tokens_per_second"))


#: Texts of the plots that can be seen: what leaves its plot, what is smaller than 11 pixels, what lies on another text.
UNREADABLE = """
  const seen = (within, what) =>
    [...within.querySelectorAll(what)].filter((e) => e.getClientRects().length && e.textContent.trim());
  const apart = (a, b) => a.left >= b.right - 1 || b.left >= a.right - 1 || a.top >= b.bottom - 2 || b.top >= a.bottom - 2;
  return seen(document, ".js-plotly-plot").flatMap((plot) => {
    const frame = plot.getBoundingClientRect(), texts = seen(plot, "text").map((e) => [e, e.getBoundingClientRect()]);
    return texts.flatMap(([e, box], i) => [
      ...(box.left < frame.left - 1 || box.right > frame.right + 1 ? ["cut off: " + e.textContent] : []),
      ...(box.bottom > frame.bottom + 1 ? ["below: " + e.textContent] : []),
      ...(parseFloat(getComputedStyle(e).fontSize) < 11 ? ["small: " + e.textContent] : []),
      ...texts.slice(i + 1).filter(([, other]) => !apart(box, other)).map(([on]) => e.textContent + " on " + on.textContent),
    ]);
  });
"""


@pytest.mark.parametrize("width", [360, 390])
def test_it_fits_a_phone(browser, width, tmp_path):
    rows = [{**row(step), **{f"throughput/time/{part}": 0.1 for part in ("ideal", "kernels", "communication", "host")}}
            for step in range(10, 501, 10)]  # fmt: skip
    file = write(tmp_path / "metrics.jsonl", rows)
    browser.resize(width, 844)
    try:
        browser.open()
        for title in TITLES:
            browser.choose_tab(title)
            if title == "Run":
                browser.upload("run-file", file)
            browser.until(lambda: browser.visible(".facts") and browser.visible(".js-plotly-plot .main-svg"))
            browser.until(lambda: browser.script(UNREADABLE) == [], f"{title}: {browser.script(UNREADABLE)}")
            found = browser.script("return [document.documentElement.scrollWidth, window.innerWidth]")
            assert found[0] <= found[1] == width, title
            right = browser.script(
                "return Math.max(...[...document.querySelectorAll('.js-plotly-plot, .fact dd, input[type=range], .export')]"
                ".filter(e => e.getClientRects().length).map(e => e.getBoundingClientRect().right))"
            )
            assert right <= width, title
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_chart_has_its_numbers_behind_it_for_the_keyboard(browser):
    browser.open("?tab=check")
    browser.until(lambda: browser.visible(".js-plotly-plot[role][tabindex]"))
    (chart,) = browser.visible(".js-plotly-plot")
    assert chart.get_attribute("aria-label") == "Chart: What each convention gives. Its numbers stand in the tables below."
    browser.script("arguments[0].focus()", chart)
    for _ in range(30):
        element = browser.driver.switch_to.active_element
        if element.tag_name == "summary":
            break
        element.send_keys(Keys.TAB)
    assert element.text == "Values of: What each convention gives (FLOP/s per device)"
    element.send_keys(Keys.ENTER)
    rows = browser.until(lambda: browser.visible(".behind tbody tr"))
    assert rows[0].text.startswith("megatron ")
    assert len(rows) == 6


def test_uploads_are_gone_when_it_ends(tmp_path):
    file = write(tmp_path / "metrics.jsonl", [row(10), row(20)])
    folder = Path(tempfile.gettempdir())
    before = set(folder.glob("bridge-explore-*"))
    with serving() as url:
        (uploads,) = set(folder.glob("bridge-explore-*")) - before
        assert uploads.stat().st_mode & 0o077 == 0
        boundary = "x" * 20
        body = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="m.jsonl"\r\n\r\n'.encode()
        request = urllib.request.Request(
            f"{url}gradio_api/upload",
            body + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode(),
            {"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        urllib.request.urlopen(request, timeout=60).close()
        assert list(uploads.rglob("m.jsonl"))
    assert not uploads.exists()
