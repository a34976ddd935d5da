"""Take the screenshots of docs/images: `python -m tests.explorer.screenshots [METRICS.jsonl]`."""

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests.explorer.browser import Browser, serving

FOLDER = Path(__file__).parents[2] / "docs" / "images"
#: File -> what is opened and the size of the window.
VIEWS = {
    "explore-model": ("?model=qwen3-30b-a3b&model.length=32768&model.batch=64&model.pp=4&model.dp=4&model.ep=4", 1280),
    "explore-compare": ("?tab=compare&compare.models=llama3-8b~gemma3-12b~qwen3-30b-a3b~deepseek-v3&compare.length=32768", 1280),
    "explore-check": ("?tab=check&check.length=8192&check.speed=13812&check.reported=800", 1280),
    "explore-finetune": ("?tab=finetune&finetune.rank=32", 1280),
    "explore-inference": ("?tab=inference&inference.batch=16&inference.device=H200", 1280),
    "explore-plan": ("?tab=plan&model=llama3-70b&plan.devices=64&plan.tp=4&plan.pp=4&plan.cp=2", 1280),
    "explore-blt": ("?tab=blt&blt.patch_size=8&blt.d_model=4096", 1280),
    "explore-run": ("?tab=run", 1280),
    "explore-phone": ("?tab=blt", 390),
    "explore-check-phone": ("?tab=check&check.length=8192&check.speed=13812&check.reported=800", 390),
    "explore-plan-phone": ("?tab=plan&model=llama3-70b&plan.devices=64&plan.tp=4&plan.pp=4&plan.cp=2", 390),
}  # fmt: skip


def main(metrics: Path) -> None:
    """Write one PNG a view, as high as its page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with serving() as url, tempfile.TemporaryDirectory() as scratch:
        browser = Browser(url, Path(scratch) / "profile", Path(scratch))
        for name, (query, width) in VIEWS.items():
            browser.resize(width, 900)
            browser.open(query)
            if name == "explore-run":
                browser.upload("run-file", metrics)
            browser.until(lambda: browser.visible(".js-plotly-plot .main-svg"))
            time.sleep(2)
            browser.resize(width, min(browser.script("return document.querySelector('.gradio-container').scrollHeight"), 2600))
            time.sleep(2)
            picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png()))
            picture.convert("RGB").quantize(256).save(FOLDER / f"{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tiny/metrics.jsonl").resolve())
