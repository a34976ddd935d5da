"""The report of a run: every number is the file's, nothing leaves the page, and no file breaks it."""

import html
import json
import re
import shutil
import subprocess
from fractions import Fraction
from html.parser import HTMLParser

import pytest

from bridge.cli.main import main
from bridge.metrics.keys import KEYS, find_key
from bridge.report.page import render
from bridge.report.panels import SECTIONS
from bridge.report.run_file import RecordedRun
from bridge.report.runs import open_run
from bridge.report.scale import scale_of, tick_text, ticks
from bridge.report.thin import kept
from bridge.report.waterfall import bars
from tests.explorer.browser import FLAGS, find_chromium
from tests.report.test_run_file import row, write

PANELS = [panel for section in SECTIONS for panel in section.panels]
FACTS = {
    "device": "NVIDIA H100 80GB HBM3",
    "convention": "megatron",
    "parameters": {"total": 8_030_261_248, "active": 8_030_261_248, "trainable": 20_971_520},
    "planned_flops": 10**18,
}


class Page(HTMLParser):
    """A report taken apart."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.numbers, self._script = [], [], "", False
        self.text = text
        self.feed(text)
        self.charts = json.loads(self.numbers)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._script = ("id", "numbers") in attributes
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data")]

    def handle_data(self, data):
        if self._script:
            self.numbers += data

    @property
    def titles(self):
        return [html.unescape(title) for title in re.findall("<figcaption><b>(.*?)</b>", self.text)]


def folder(tmp_path, rows, facts=None):
    run = tmp_path / "my run"
    run.mkdir()
    write(run / "metrics.jsonl", rows)
    if facts is not None:
        (run / "metrics.summary.json").write_text(json.dumps(facts))
    return run


# ---- the declaration ------------------------------------------------------------------------------------------------


def test_the_keys_of_a_panel_are_declared_and_have_one_unit():
    names = {key.name for key in KEYS}
    for panel in PANELS:
        assert set(panel.names) <= names, panel.title
        assert {key.unit for key in panel.keys} == {panel.unit}, panel.title
    assert len({panel.title for panel in PANELS}) == len(PANELS)


def test_what_a_run_logs_is_declared():
    assert [key for key in row(10) if key != "step" and find_key(key) is None] == []
    assert find_key("throughput/flops/") is None
    assert find_key("throughput/flops/mlp").name == "throughput/flops/<component>"


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_holds_the_numbers_of_the_run(tmp_path):
    rows = [row(step) for step in range(10, 501, 10)]
    run = folder(tmp_path, rows, FACTS)
    assert main(["report", str(run)]) == 0
    page = Page((run / "report.html").read_text())
    charts = dict(zip(page.titles, page.charts, strict=True))
    steps = [one["step"] for one in rows]

    def shown(title, label):
        (series,) = [found for found in charts[title]["series"] if found["label"] == label]
        assert charts[title]["steps"] == steps
        return series["values"]

    assert shown("Utilization of the peak", "MFU") == [pytest.approx(100 * one["throughput/mfu"], rel=1e-4) for one in rows]
    work = "Work of a log interval by component"
    assert charts[work]["unit"] == "PFLOP"
    assert shown(work, "mlp") == [pytest.approx(one["throughput/flops/mlp"] / 1e15, rel=1e-4) for one in rows]
    for i, one in enumerate(rows):
        whole = Fraction(one["throughput/flops/mlp"] + one["throughput/flops/core_attention"])
        share = shown("Share of the components", "core attention")[i]
        assert share == pytest.approx(float(100 * one["throughput/flops/core_attention"] / whole), rel=1e-4)
    # Panels without keys in this run are left out.
    assert "Gradient norm" not in charts
    total = rows[-1]["throughput/total_flops"]
    done = f"{total:,}; 10.0% of at most 1 EFLOP planned"
    head = ("my run", "NVIDIA H100 80GB HBM3", "megatron", "8,030,261,248", "0.261%", done)
    assert [text for text in head if text not in page.text] == []
    assert page.text.count("planned, at most") == 1


def test_the_page_asks_the_network_for_nothing(tmp_path):
    page = Page(render(open_run(folder(tmp_path, [row(10), row(20)]))))
    assert page.addresses == []
    assert "default-src 'none'" in page.text
    assert not re.search(r"https?://|url\(|@import", page.text)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def test_hostile_names_and_facts_are_text(tmp_path):
    rows = [{**row(step), f"throughput/flops/{HOSTILE}": 10**14, HOSTILE: 1.5} for step in (10, 20)]
    facts = {"device": HOSTILE, "convention": [HOSTILE], "parameters": HOSTILE, "peak_flops": HOSTILE, "planned_flops": HOSTILE,
             "world_size": {}, "not_counted": [HOSTILE], "peak_source": 7, "flops_per_token": -1}  # fmt: skip
    text = render(open_run(folder(tmp_path, rows, facts)))
    page = Page(text)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert any(series["label"] == HOSTILE.replace("_", " ") for chart in page.charts for series in chart["series"])
    assert html.escape(HOSTILE) in text


@pytest.mark.parametrize("facts", ["[]", "{", "null", "3"])
def test_facts_that_are_none_are_none(tmp_path, facts):
    run = folder(tmp_path, [row(10)])
    (run / "metrics.summary.json").write_text(facts)
    assert "FLOPs so far" in render(open_run(run))


def test_a_single_row_and_rows_without_throughput_are_drawn(tmp_path):
    assert Page(render(open_run(folder(tmp_path, [row(10)])))).charts
    run = RecordedRun("metrics.jsonl")
    run.take([{"step": 1, "lm loss": 3.0, "grad-norm": 0.0}, {"step": 2, "lm loss": 3.0}])
    page = Page(render(run))
    assert page.titles == ["Loss", "Gradient norm"]
    assert "no ThroughputCallback" in page.text
    assert "nan" not in page.text


def test_numbers_of_any_size_are_drawn(tmp_path):
    sizes = (0, 1e-249, 1e249, -1e249, 1e249 * (1 + 2**-52))
    keys = [key.name.replace("<component>", part) for key in KEYS for part in ("mlp", "moe")]
    for i, pair in enumerate((one, two) for one in sizes for two in sizes):
        rows = [{"step": step, **dict.fromkeys(keys, number)} for step, number in zip((1, 1e249), pair, strict=True)]
        text = render(open_run(write(tmp_path / f"{i}.jsonl", rows)))
        assert len(Page(text).charts) == len(PANELS)
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)


def test_runs_that_cannot_be_read_are_one_line(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, said in (
        (tmp_path / "missing", "does not exist"),
        (empty, "holds no run"),
        (write(tmp_path / "metrics.jsonl", [], end=""), "holds no rows of metrics (yet?)"),
    ):
        assert main(["report", str(source)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    file = write(tmp_path / "metrics.jsonl", [row(10)])
    assert main(["report", str(file), "-o", str(tmp_path / "no" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_long_run_keeps_its_extremes_and_a_small_page(tmp_path):
    lines = [json.dumps({"step": i, "throughput/mfu": 0.4 + 0.001 * (i % 7), "throughput/flops/mlp": i}) for i in range(100_000)]
    lines[54_321] = json.dumps({"step": 54_321, "throughput/mfu": 0.9, "throughput/flops/mlp": 1})
    lines[77_777] = json.dumps({"step": 77_777, "throughput/mfu": 0.01, "throughput/flops/mlp": 1})
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(lines) + '\n{"step": 100000, "throu')
    text = render(open_run(file))
    page = Page(text)
    assert len(text) < 400_000
    (chart,) = [chart for title, chart in zip(page.titles, page.charts, strict=True) if title == "Utilization of the peak"]
    points = dict(zip(chart["steps"], chart["series"][0]["values"], strict=True))
    assert (points[54_321], points[77_777]) == (90.0, 1.0)
    assert {0, 99_999} <= set(points)
    assert "ends in the middle of a row" in text


# ---- W&B ------------------------------------------------------------------------------------------------------------


def test_starts_of_one_wandb_run_become_one(tmp_path):
    """The offline run of the tracker itself, resumed; facts and units come from its configuration."""
    pytest.importorskip("wandb", reason="writes a run with wandb itself")
    from bridge.config.schema import LoggerConfig
    from bridge.metrics.trackers import open_trackers

    options = LoggerConfig(dir=str(tmp_path), metrics_file=None, wandb_project="p", wandb_mode="offline")
    run_id = None
    for first, last, scale in ((0, 30, 1), (20, 50, 2)):
        trackers = open_trackers(options, name="my name", step=first, run_id=run_id)
        trackers.summary(FACTS)
        for step in range(first + 10, last + 1, 10):
            trackers.log({"throughput/total_tokens": step * scale}, step, commit=True)
        trackers.close()
        run_id = trackers.run_id
    run = open_run(tmp_path)
    assert run.name == "my name"
    assert [(one["step"], one["throughput/total_tokens"]) for one in run.rows] == [
        (10, 10),
        (20, 20),
        (30, 60),
        (40, 80),
        (50, 100),
    ]
    assert {key: run.facts[key] for key in FACTS} == FACTS
    (newest,) = [path for path in (tmp_path / "wandb").iterdir() if path.is_dir() and not path.is_symlink()][-1:]
    assert open_run(newest).rows


# ---- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "largest", "value", "text"),
    [
        ("FLOP", 2**80, 2**80, "1.209 YFLOP"),
        ("TFLOP/s", 420.0, 420.0, "420 TFLOP/s"),
        ("TFLOP/s", 0.027, 0.027, "27 GFLOP/s"),
        ("TFLOP/s", 1500.0, 1500.0, "1.5 PFLOP/s"),
        ("fraction", 0.4, 0.4213, "42.13%"),
        ("tokens/s", 999.0, 999.0, "999 tokens/s"),
        ("tokens/s", 1000.0, 1000.0, "1 k tokens/s"),
        ("s", 0.35, 0.35, "350 ms"),
        ("s", 3.5, 3.5, "3.5 s"),
        ("ratio", 1.2, 1.2, "1.2"),
        ("FLOP", 0, 0, "0 FLOP"),
        ("bananas", 5.0, 5.0, "5 bananas"),
    ],
)
def test_numbers_have_few_digits_and_the_right_prefix(unit, largest, value, text):
    assert scale_of(unit, largest).text(value) == text


def test_ticks_are_round_and_enclose_the_numbers():
    assert ticks(0, 80) == [0, 20, 40, 60, 80]
    assert ticks(0, 33, outside=True) == [0, 10, 20, 30, 40]
    assert [tick_text(tick) for tick in ticks(1, 1.0503, outside=True)] == ["1", "1.02", "1.04", "1.06"]
    assert [tick_text(tick) for tick in ticks(0, 100_000)] == ["0", "20k", "40k", "60k", "80k", "100k"]
    assert ticks(0, 1, whole=True) == [0, 1]
    assert ticks(0, 12, whole=True) == [0, 5, 10]
    assert ticks(5, 5) == [5]


def test_short_runs_are_kept_whole():
    assert kept([[1, None, 2], [None, None, 3]]) == [0, 2]
    assert kept([]) == []


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="needs chromium: apt-get install chromium chromium-driver")
def test_in_a_browser_all_is_drawn_and_the_pointer_reads_numbers(tmp_path):
    """A real page in headless Chromium: the script runs under the page's own policy, and the drawing is where it should be."""
    rows = [{**row(step), f"throughput/flops/{HOSTILE}": 10**14} for step in range(10, 201, 10)]
    run = folder(tmp_path, rows, FACTS)
    page = tmp_path / "probe.html"
    probe = """<script>
      const svg = document.querySelector("figure svg"), box = svg.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right - 5, clientY: box.top + 20}));
      const figure = document.querySelector("figure"), tip = figure.querySelector(".tip"), inside = tip.getBoundingClientRect();
      const said = () => [...tip.querySelectorAll("div")].map((e) => e.textContent).join("|");
      const found = [said(), document.documentElement.scrollWidth, document.querySelectorAll("path").length];
      found.push(inside.top > box.top && inside.bottom < box.bottom && inside.right < box.right);
      svg.focus();
      for (const key of ["Home", "ArrowRight"]) svg.dispatchEvent(new KeyboardEvent("keydown", { key }));
      found.push(document.activeElement === svg, said());
      const folded = figure.querySelector("details");
      folded.addEventListener("toggle", () => {
        found.push(folded.querySelectorAll("tr").length, folded.querySelector("tbody tr:last-child").textContent);
        document.title = found.join("|");
      });
      folded.open = true;
    </script>"""
    page.write_text(render(open_run(run)).replace("</body>", f"{probe}</body>"))
    found = find_chromium()
    command = [found[0], *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,900", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
    step, value, width, paths, placed, focused, second, then, lines, end = html.unescape(
        re.search("<title>(.*?)</title>", shown)[1]
    ).split("|")
    last = rows[-1]["throughput/tflops/device"]
    assert step == "step 200"
    assert value == f"counted {scale_of('TFLOP/s', last).text(last)}"
    assert int(width) <= 1280
    assert (placed, focused, second, int(lines)) == ("true", "true", "step 20", 1 + len(rows))
    second_value = rows[1]["throughput/tflops/device"]
    assert then == f"counted {scale_of('TFLOP/s', second_value).text(second_value)}"
    assert end == "200" + value.split()[1]
    assert int(paths) == sum(len(chart["series"]) for chart in Page(page.read_text()).charts)  # none of points alone


def test_totals_that_miss_something_are_lower_bounds(tmp_path):
    rows = [{**row(10), "throughput/incomplete": 1}, row(20)]
    page = Page(render(open_run(folder(tmp_path, rows))))
    assert "FLOPs so far, at least" in page.text
    assert "Totals are lower bounds." in page.text


PARTS = {"ideal": 0.1, "kernels": 0.15, "communication": 0.2, "host": 0.05}


def test_the_first_panel_is_the_waterfall_and_the_sentence_stands_on_top(tmp_path, capsys):
    rows = [{**row(step), **{f"throughput/time/{name}": value for name, value in PARTS.items()}} for step in (10, 20)]
    run = folder(tmp_path, rows)
    text = render(open_run(run))
    sentence = (
        "Mean MFU 20.0%: of 500 ms per step 100 ms are the counted work at the peak. Most of the rest is communication, "
        "200 ms (40%)"
    )
    assert text.index("<h1>") < text.index(sentence) < text.index("<main>") < text.index('<figure class="still">')
    assert text.index('<figure class="still">') < text.index("FLOP/s per device</b>")
    assert [bar.name for bar in bars(PARTS)] == ["step", "communication", "kernels", "host", "ideal"]
    drawn = bars(PARTS)
    assert [(round(bar.start, 9), bar.length) for bar in drawn[1:]] == [(0.3, 0.2), (0.15, 0.15), (0.1, 0.05), (0, 0.1)]
    assert main(["report", str(run), "--why"]) == 0
    assert capsys.readouterr().out.startswith(sentence)
    assert not (run / "report.html").exists()


def test_a_run_without_parts_says_why_there_is_no_why(tmp_path, capsys):
    run = folder(tmp_path, [row(10)])
    assert "still" not in render(open_run(run)).partition("</style>")[2].partition("<script")[0]
    assert main(["report", str(run), "--why"]) == 0
    assert "no throughput/time/ keys" in capsys.readouterr().out


def test_two_runs_lie_over_each_other(tmp_path, capsys):
    """Lines of both in one chart and one unit, at the steps of either; what adds up stands one a run."""
    names = ("throughput/tflops/device", "throughput/mfu", "throughput/flops/mlp")
    for name, tflops, steps in (("fast", 4_000.0, (10, 20)), ("slow", 5.0, (20, 30))):
        rows = [{"step": step, **dict(zip(names, (tflops + step, tflops / 1e4, 7), strict=True))} for step in steps]
        (tmp_path / name).mkdir()
        write(tmp_path / name / "metrics.jsonl", rows)
    sources = [str(tmp_path / name) for name in ("fast", "slow")]
    assert main(["report", *sources]) == 0
    capsys.readouterr()
    page = Page((tmp_path / "fast" / "reports.html").read_text())
    assert page.text.index("<h1>fast</h1>") < page.text.index("<h1>slow</h1>")
    chart = page.charts[0]
    assert (chart["unit"], chart["steps"]) == ("PFLOP/s", [10, 20, 30])
    assert [(one["label"], one["values"]) for one in chart["series"]] == [
        ("fast", [4.01, 4.02, None]),
        ("slow", [None, 0.025, 0.035]),
    ]
    assert "Work of a log interval by component: fast" in page.titles
    assert "Work of a log interval by component: slow" in page.titles
    assert main(["report", *sources, "--why"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["fast", "slow"]


def test_runs_of_one_name_are_told_apart_by_where_they_are(tmp_path, capsys):
    for place in ("a", "b"):
        (tmp_path / place / "tiny").mkdir(parents=True)
        write(tmp_path / place / "tiny" / "metrics.jsonl", [row(10), row(20)])
    sources = [str(tmp_path / place / "tiny") for place in ("a", "b")]
    assert main(["report", *sources, "-o", str(tmp_path / "both.html")]) == 0
    assert f"<h1>{sources[1]}</h1>" in (tmp_path / "both.html").read_text()
    assert main(["report", sources[0], sources[0]]) == 2
    assert "the same run is given twice" in capsys.readouterr().err
