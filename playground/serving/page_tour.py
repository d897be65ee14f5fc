"""The page in a browser, as a reader uses it, on a desk and on a phone; with pictures of it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from processes import ROOT, StepFailed

PATIENCE_MS = 90_000
SIZES = {"desktop": (1360, 900), "phone": (390, 844)}
DESCRIBE = "请描述该超声图像的所见。"
STILL = "这是静态图还是动态序列？"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The browser that scripts/chromium.sh finds."""
    found = subprocess.run(
        ["bash", ROOT / "scripts" / "chromium.sh", "path"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise StepFailed(found.stderr.strip() or "no browser: bash scripts/chromium.sh install")
    with sync_playwright() as playwright:
        # Root has no sandbox in Chromium; the page shows synthetic and public pictures.
        browser = playwright.chromium.launch(executable_path=found.stdout.strip(), args=["--no-sandbox"])
        yield browser
        browser.close()


class Tour:
    """One window.

    Args:
        browser: in which.
        address: of the page.
        size: of `SIZES`.
        pictures: where screenshots go.
    """

    def __init__(self, browser: Browser, address: str, size: str, pictures: Path) -> None:
        width, height = SIZES[size]
        self._size, self._pictures = size, pictures
        self.page: Page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(PATIENCE_MS)
        self._foreign: list[str] = []
        self._errors: list[str] = []
        self.page.on("request", lambda request: self._look_at(request.url))
        self.page.on("pageerror", lambda error: self._errors.append(str(error)))
        self.page.goto(address)
        expect(self.page.locator("#model-a input")).not_to_have_value("", timeout=PATIENCE_MS)

    def _look_at(self, url: str) -> None:
        if not url.startswith(("data:", "blob:", "http://127.0.0.1:")):
            self._foreign.append(url)

    def upload(self, file: Path) -> int:
        """Chooses a file; its frames."""
        self.page.set_input_files(".drop input", str(file))
        self.page.wait_for_selector(".thumb")
        return self.page.locator(".thumb").count()

    def pick(self, lane: str, model: str) -> None:
        """Chooses a model, lane a or b."""
        self.page.click(f"#model-{lane} input")
        self.page.locator("ul.options li", has_text=model).last.click()

    def ask(self, text: str, state: str = "done", lanes: int = 1) -> list[str]:
        """Asks and waits; the answer of each lane."""
        turns = self.page.locator(".lane >> nth=0").locator(".turn").count()
        self.page.fill("#question textarea", text)
        self.page.press("#question textarea", "Enter")
        expect(self.page.locator(".lane >> nth=0").locator(".turn")).to_have_count(turns + 1, timeout=PATIENCE_MS)
        if state == "stopped":
            self.page.click("#stop")
        answers = []
        for lane in range(lanes):
            turn = self.page.locator(f".lane >> nth={lane}").locator(".turn").last
            expect(turn).to_have_attribute("data-state", state, timeout=PATIENCE_MS)
            answers.append(turn.locator(".answer").text_content() or "")
        return answers

    def shoot(self, name: str) -> Path:
        """A screenshot."""
        path = self._pictures / f"{self._size}-{name}.png"
        self.page.wait_for_timeout(400)  # what slides into its place
        self.page.screenshot(path=path)
        return path

    def end(self) -> None:
        """Closes the window.

        Raises:
            StepFailed: the page asked another host for something, has a script's error, or is wider than the window.
        """
        width = self.page.evaluate("document.documentElement.scrollWidth")
        if self._foreign or self._errors or width > SIZES[self._size][0]:
            raise StepFailed(f"{self._size}: {width} pixels wide, {self._foreign[:1]}, {self._errors[:1]}")
        self.page.close()


def tour(
    address: str,
    cine: Path,
    models: tuple[str, str],
    pictures: Path,
    slowed: Callable[[], AbstractContextManager[None]],
) -> list[str]:
    """Upload, ask, stop, another model, both side by side; upload and ask on a phone. Lines for the terminal.

    Args:
        address: of the page.
        cine: a DICOM file.
        models: names of two.
        pictures: folder of the screenshots.
        slowed: makes the workers slow enough that an answer can be stopped.
    """
    pictures.mkdir(parents=True)
    told = []
    with chromium() as browser:
        desk = Tour(browser, address, "desktop", pictures)
        desk.pick("a", models[0])
        frames = desk.upload(cine)
        [first] = desk.ask(DESCRIBE)
        told.append(f"{frames} frames of a cine; {models[0]}: {first}")
        desk.shoot("answer")
        with slowed():
            desk.ask(DESCRIBE, state="stopped")
        desk.shoot("stopped")
        desk.pick("a", models[1])
        [other] = desk.ask(STILL)
        told.append(f"the other model, {models[1]}: {other}")
        desk.pick("b", models[0])
        both = desk.ask(DESCRIBE, lanes=2)
        told.append(f"side by side: {both[0]} | {both[1]}")
        desk.shoot("compared")
        desk.end()
        phone = Tour(browser, address, "phone", pictures)
        phone.pick("a", models[0])
        phone.upload(cine)
        phone.shoot("exam")
        phone.ask(DESCRIBE)
        phone.page.locator(".turn").last.scroll_into_view_if_needed()
        phone.shoot("answer")
        phone.end()
    if not all((first, other, *both)):
        raise StepFailed(f"the page showed an empty answer: {told}")
    return told
