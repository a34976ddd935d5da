"""A real headless Chromium on the page, for tests and for screenshots."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: Seconds; machines that run the suite are shared and slow at times.
PATIENCE = 90
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-color-profile=srgb",
)  # fmt: skip


def find_chromium() -> tuple[str, str] | None:
    """The browser and its driver; None where one of them is not installed."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def serving() -> Iterator[str]:
    """`bridge explore` as a user starts it; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    process = subprocess.Popen(
        [sys.executable, "-m", "bridge", "explore", "--port", str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not _answers(url):
            assert process.poll() is None, "bridge explore ended"
            assert time.monotonic() < deadline, "bridge explore does not answer"
            time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


class Browser:
    """What a user does on the page.

    Args:
        url: of the page.
        profile: a new, empty folder.
        downloads: where saved files go.
    """

    def __init__(self, url: str, profile: Path, downloads: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        found = find_chromium()
        assert found is not None
        options = Options()
        options.binary_location = found[0]
        for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1280,900"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.url, self.downloads = url, downloads
        self.driver = webdriver.Chrome(options=options, service=Service(found[1]))
        self.driver.set_page_load_timeout(PATIENCE)
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})

    def close(self) -> None:
        self.driver.quit()

    def open(self, query: str = "", ready: str = ".facts, .notes, .problem") -> None:
        """Load the page and wait until something is shown."""
        self.driver.get(self.url + query)
        self.until(lambda: self.visible(ready))

    def until(self, condition: Any, what: str = "", patience: float = PATIENCE) -> Any:
        """The first true result of ``condition``; fails after a while. The page may replace what is being read."""
        from selenium.common.exceptions import StaleElementReferenceException

        deadline, last = time.monotonic() + patience, None
        while time.monotonic() < deadline:
            with suppress(StaleElementReferenceException):
                last = condition()
                if last:
                    return last
            time.sleep(0.2)
        raise AssertionError(f"waited {patience} s for {what or condition}; last: {last!r}")

    def visible(self, selector: str) -> list[Any]:
        """Elements that can be seen."""
        return [element for element in self.driver.find_elements("css selector", selector) if element.is_displayed()]

    def only(self, selector: str) -> Any:
        """The one element of that kind that can be seen."""
        (element,) = self.until(lambda: self.visible(selector), selector)
        return element

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    # The page

    def fact(self, key: str) -> str | None:
        """All digits of a headline number of the open tab."""
        return self.script(
            "const e = [...document.querySelectorAll(`[data-fact='${arguments[0]}']`)].find(e => e.getClientRects().length);"
            "return e ? e.dataset.value : null",
            key,
        )

    def text(self, key: str) -> str:
        """A headline number as it is shown."""
        return self.only(f"[data-fact='{key}']").text

    def until_fact(self, key: str, value: Any) -> None:
        """Wait until a headline number is ``value``, to the digit."""
        self.until(lambda: self.fact(key) == str(value), f"{key} = {value}, is {self.fact(key)}")

    def table(self) -> dict[str, dict[str, str]]:
        """The open tab's table: first cell -> heading -> all digits of a cell, or its text."""
        return self.script(
            "const t = [...document.querySelectorAll('.table table')].find(e => e.getClientRects().length);"
            "const heads = [...t.querySelectorAll('thead th')].map(e => e.textContent);"
            "return Object.fromEntries([...t.querySelectorAll('tbody tr')].map(row => [row.cells[0].textContent,"
            "  Object.fromEntries([...row.cells].map((c, i) => [heads[i], c.dataset.value ?? c.textContent]))]))"
        )

    def choose_tab(self, title: str) -> None:
        """Open a tab, from the menu that holds those that do not fit."""
        from selenium.webdriver.common.by import By

        def click() -> bool:
            for menu in (False, True):
                if menu and (more := self.visible(".overflow-menu > button")):
                    more[0].click()
                for button in self.driver.find_elements(By.CSS_SELECTOR, "button[role=tab], .overflow-dropdown button"):
                    if button.is_displayed() and button.text.strip() == title:
                        button.click()
                        return True
            return False

        self.until(click, f"the tab {title}")

    def type_number(self, control: str, value: Any) -> None:
        """Type into the number field of a slider."""
        from selenium.webdriver.common.keys import Keys

        field = self.only(f"#{control} input[type=number]")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value), Keys.TAB)

    def push(self, control: str, *keys: str) -> None:
        """Focus a slider and press keys."""
        slider = self.only(f"#{control} input[type=range]")
        self.script("arguments[0].focus()", slider)
        slider.send_keys(*keys)

    def pick(self, control: str, text: str) -> None:
        """Type into a drop-down and press Enter."""
        from selenium.webdriver.common.keys import Keys

        field = self.only(f"#{control} input")
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        self.until(lambda: [e for e in self.visible("[role=option]") if text in (e.get_attribute("aria-label") or e.text)], text)
        field.send_keys(Keys.ENTER)

    def check(self, control: str, label: str) -> None:
        """Click a radio button or a check box by its label."""
        self.until(lambda: [e for e in self.visible(f"#{control} label") if e.text.strip() == label], label)[0].click()

    def unfold(self, title: str) -> None:
        """Open a folded group of controls."""
        self.until(lambda: [e for e in self.visible("button.label-wrap") if e.text.strip().startswith(title)], title)[0].click()

    def upload(self, control: str, path: Path) -> None:
        """Drop a file."""
        self.until(lambda: self.driver.find_elements("css selector", f"#{control} input[type=file]"), control)[0].send_keys(
            str(path)
        )

    def saved(self, pattern: str, button: str) -> Path:
        """The file that a button saves, once it is whole. A button that moved while the page was laid out is clicked again."""
        for patience in (10, 20, PATIENCE):
            self.only(button).click()
            with suppress(AssertionError):
                return self.until(lambda: next(iter(self.downloads.glob(pattern)), None), patience=patience)
        raise AssertionError(f"{button} has saved no {pattern}")

    def resize(self, width: int, height: int) -> None:
        """Another window; a phone where it is narrow."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    # What the browser saw

    def foreign_requests(self) -> list[str]:
        """Requests since the last call that left this machine's page (the browser's own pages aside)."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            address = message["params"].get("request", {}).get("url") or message["params"].get("url", "")
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                if not address.startswith((self.url, "data:", "blob:", "chrome:", "chrome-untrusted:", "about:")):
                    found.append(address)
        return found

    def complaints(self) -> list[str]:
        """Errors in the browser's log since the last call, but for requests that leaving the page has cut off."""
        errors = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [error for error in errors if "AbortError" not in error and "errored out" not in error]
