"""The picture of `wandb leet` in the documentation, from a real terminal: python -m tests.report.leet_screenshot RUN [FILE]

Needs tmux and chromium. RUN is an offline-run-* folder, as it should stand in the picture.
"""

import io
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.explorer.browser import Browser

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "leet.png"
COLUMNS, LINES = 140, 42
#: Without system metrics; some keys of throughput in two columns and four rows.
KEYS = ("2", "/", "mfu|flops|step_time|padding", "Enter", "c", "2", "r", "4")


def capture(run: str, home: str) -> str:
    """What stands in the terminal, with its colors. Leet remembers in ``home`` how it was left."""
    tmux = ["tmux", "-L", "leet-screenshot"]
    command = (
        f"env HOME={home} TERM=tmux-256color COLORTERM=truecolor {shlex.quote(sys.executable)} -m wandb leet {shlex.quote(run)}"
    )
    try:
        subprocess.run([*tmux, "new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), command], check=True)
        _wait_for(tmux, "Metrics [")
        for key in KEYS:
            subprocess.run([*tmux, "send-keys", *(["Enter"] if key == "Enter" else ["-l", key])], check=True)
            time.sleep(1)
        _wait_for(tmux, "filtered")
        time.sleep(5)
        return _screen(tmux, "-e")
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


def _screen(tmux: list[str], *options: str) -> str:
    return subprocess.run([*tmux, "capture-pane", *options, "-p"], capture_output=True, text=True, check=True).stdout


def _wait_for(tmux: list[str], text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in _screen(tmux) and time.monotonic() < deadline:
        time.sleep(1)


def as_svg(ansi: str, title: str) -> str:
    """The terminal as a drawing, in a font of this machine."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(ansi.rstrip("\n")), no_wrap=True, crop=True)
    svg = console.export_svg(title=title, theme=MONOKAI)
    faces = svg.split("@font-face")
    svg = faces[0] + faces[-1].partition("}")[2]
    return svg.replace("Fira Code", "DejaVu Sans Mono")


def main(run: str, picture: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "leet.html"
        page.write_text(f"<body style='margin:0'>{as_svg(capture(run, scratch), f'wandb leet {run}')}</body>")
        browser = Browser(page.as_uri(), Path(scratch) / "profile", Path(scratch))
        browser.resize(1280, 900)
        browser.open(ready="svg")
        browser.resize(1280, browser.script("return Math.ceil(document.querySelector('svg').getBoundingClientRect().height)"))
        time.sleep(1)
        shot = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png()))
        browser.close()
    shot.convert("RGB").quantize(64).save(picture, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else PICTURE)
