"""Pictures for the documentation: python -m tests.report.screenshots RUN [--dark] [--height PIXELS] [-o FILE]"""

import argparse
import io
import tempfile
import time
from pathlib import Path

from PIL import Image

from bridge.report.page import render
from bridge.report.runs import open_run
from tests.explorer.browser import Browser

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "report.png"


def main(run: str, picture: Path, width: int, dark: bool, height: int | None) -> None:
    """The report of a run, as high as it is or cut at a height."""
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        page.write_text(render(open_run(run)))
        browser = Browser(page.as_uri(), Path(scratch) / "profile", Path(scratch))
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.resize(width, 900)
        browser.open(ready="svg")
        browser.resize(width, browser.script("return document.documentElement.scrollHeight"))
        time.sleep(1)
        shot = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png()))
        browser.close()
    if height:
        shot = shot.crop((0, 0, shot.width, min(height, shot.height)))
    shot.convert("RGB").quantize(256).save(picture, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int)
    parser.add_argument("-o", "--output", type=Path, default=PICTURE)
    options = parser.parse_args()
    main(options.run, options.output, options.width, options.dark, options.height)
