"""The exam page as its own process, and a browser in front of it; what a test does there, in a user's words."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import llava_servers
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = Path(__file__).resolve().parents[2] / "scripts" / "chromium.sh"
PATIENCE_MS = 60_000  # of a slow machine that other tests share


@dataclass(frozen=True)
class Served:
    """A page.

    Args:
        address: where it listens.
        folders: temporary folder, home and working folder of its process.
        outside: a socket that its process takes for the way to other hosts.
        log: what it printed.
    """

    address: str
    folders: tuple[Path, ...]
    outside: socket.socket
    log: Path

    def files(self) -> set[Path]:
        """Every file and folder below `folders`."""
        return {path for folder in self.folders for path in folder.rglob("*")}

    def asked_outside(self) -> list[bytes]:
        """What the process has asked other hosts; other tests that knock at the port say nothing."""
        asked = []
        while True:
            try:
                connection = self.outside.accept()[0]
            except BlockingIOError:
                return [one for one in asked if one]
            with connection, contextlib.suppress(TimeoutError):
                connection.settimeout(2)
                asked.append(connection.recv(200))


@contextlib.contextmanager
def exam_page(controller: str, folder: Path, *flags: str) -> Iterator[Served]:
    """Serves the page until the end of the block."""
    [port] = llava_servers.free_ports(1)
    folders = tuple(folder / name for name in ("tmp", "home", "work"))
    for one in folders:
        one.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as outside:
        outside.setblocking(False)
        proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
        changes = {"TMPDIR": str(folders[0]), "HOME": str(folders[1]), "NO_PROXY": "", "no_proxy": ""}
        changes |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy)
        changes["PYTHONDONTWRITEBYTECODE"] = "1"
        command = ["env", "-C", str(folders[2]), "-u", "GRADIO_TEMP_DIR", *(f"{k}={v}" for k, v in changes.items())]
        command += [sys.executable, "-m", "llava_ultra_ext.serve.web", "--controller-address", controller]
        command += ["--port", str(port), *flags]
        log = folder / "page.log"
        with llava_servers.server(command, log, lambda: llava_servers.listens(port)):
            yield Served(f"http://127.0.0.1:{port}", folders, outside, log)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser; fails with the command that installs one where there is none."""
    for what in ("install", "path"):
        done = subprocess.run(["bash", CHROMIUM, what], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(done.stderr.strip() or "bash scripts/chromium.sh install")
    with sync_playwright() as playwright:
        # The tests run as root, where Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=done.stdout.strip(), args=["--no-sandbox"])
        yield browser
        browser.close()


class Reader:
    """Somebody who reads exams on the page.

    Args:
        browser: in which.
        served: the page.
        width, height: of the window, pixels.
        password: that the browser gives.
    """

    def __init__(
        self, browser: Browser, served: Served, width: int = 1280, height: int = 900, password: str | None = None
    ) -> None:
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        credentials = None if password is None else {"username": "ultra", "password": password}
        window = {"width": width, "height": height}
        self.page: Page = browser.new_page(viewport=window, http_credentials=credentials)  # type: ignore[arg-type]
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("request", lambda request: self.hosts.add(_host(request.url)))
        self.page.on("pageerror", lambda error: self.errors.append(f"{error}\n{error.stack}"))
        self.page.goto(served.address)
        self.page.wait_for_selector(".drop")
        expect(self.page.locator("#model-a input")).not_to_have_value("", timeout=PATIENCE_MS)

    def gives(self, *files: Path) -> None:
        """Chooses files and waits for their frames."""
        with self._another_exam():
            self.page.set_input_files(".drop input", [str(file) for file in files])

    def tries(self, example: str) -> None:
        """Presses the button of an example."""
        with self._another_exam():
            self.page.click(f'[data-example="{example}"]')

    def removes(self) -> None:
        """Takes the exam away."""
        with self._another_exam():
            self.page.click(".remove")

    @contextlib.contextmanager
    def _another_exam(self) -> Iterator[None]:
        before = self.page.evaluate("examPage.key()")
        yield
        self.page.wait_for_function("before => examPage.key() !== before", arg=before)

    def picks(self, lane: str, model: str) -> None:
        """Chooses a model, lane ``a`` or ``b``."""
        self.page.click(f"#model-{lane} input")
        self.page.locator("ul.options li", has_text=model).last.click()

    def asks(self, text: str) -> None:
        """Types a question and presses Enter."""
        self.page.fill("#question textarea", text)
        self.page.press("#question textarea", "Enter")

    def waits_for(self, state: str, lane: int = 0) -> dict[str, str]:
        """Until the lane's newest turn has a state; its texts."""
        turn = self.page.locator(f".lane >> nth={lane}").locator(".turn").last
        expect(turn).to_have_attribute("data-state", state, timeout=PATIENCE_MS)
        parts = ("question", "model", "answer", "status", "error")
        return {part: turn.locator(f".{part}").text_content() or "" for part in parts}

    def asks_and_waits(self, text: str) -> dict[str, str]:
        """A question and its whole answer."""
        self.asks(text)
        expect(self.page.locator(".lane >> nth=0").locator(".turn .question").last).to_have_text(text)
        return self.waits_for("done")

    def scores(self) -> list[float]:
        """Below the frames of the strip, of the first model."""
        texts = self.page.locator(".thumb .marks .score:first-child").all_text_contents()
        return [float(re.sub(r"[^\d.-]", "", text)) for text in texts]

    def chosen(self) -> list[int]:
        """Frames with a tick."""
        thumbs = self.page.locator(".thumb .marks").all_text_contents()
        return [place for place, text in enumerate(thumbs) if "✓" in text]


def _host(url: str) -> str:
    return "" if url.startswith(("data:", "blob:")) else url.split("/")[2].partition(":")[0]
