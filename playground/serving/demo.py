"""Two models served with one command, asked by a program and by a reader, while parts of the service are killed.

    bash scripts/serve_demo.sh      (it makes the environment and the models, then calls this)

Everything goes to one folder, which is emptied first: logs, screenshots of the page, tables of the benchmarks.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from serve_parts import Service, address_of, service

from api_questions import Question, ask, read_questions, refusals
from dicom_frames import local_files
from page_tour import DESCRIBE, STILL, tour
from processes import ROOT, StepFailed, python, step, stop_on_signals

OUT = ROOT / "playground" / "out" / "serving"
MARK = ".serve_demo"  # says that a folder is ours to empty
MODELS = ("llava-ultra-lora", "llava-ultra-stage1")
CINE = "examples_ybr_color.dcm"
WORKERS = 2  # of each model
LOST_SECONDS, RETURN_SECONDS = 5.0, 180.0
BENCHES = {
    "load: 8 clients, stock beside": ["serve_load.py", "--quick"],
    "faults": ["serve_faults.py"],
    "inputs that must be refused": ["serve_inputs.py", "--quick"],
}


class ServeDemo:
    """A running service and what is done to it.

    Args:
        out: absolute folder that holds everything.
        quickstart: absolute folder of the quick start.
        running: of both models.
    """

    def __init__(self, out: Path, quickstart: Path, running: Service) -> None:
        self.out, self.running = out, running
        self.client = openai.OpenAI(base_url=running.api, api_key="none", max_retries=0, timeout=120)
        self.questions = read_questions(quickstart / "exams", 3)

    def ask(self) -> list[str]:
        """Both models, by OpenAI's client; lines for the terminal."""
        served = sorted(model.id for model in self.client.models.list())
        if served != sorted(MODELS):
            raise StepFailed(f"the API serves {served}")
        pairs = itertools.product(MODELS, self.questions[:2])
        return [*(ask(self.client, *pair) for pair in pairs), *refusals(self.client, MODELS[0], self.questions[0])]

    def kill_worker(self) -> list[str]:
        """In mid-stream; the client hears of it, the next request goes to the other one, a new one joins."""
        asked = self.questions[0]
        before = self.running.workers()
        with self.slowed():
            code, seconds = self._hit(asked)
        if code != "worker_lost" or seconds > LOST_SECONDS:
            raise StepFailed(f"the stream of a killed worker ended with {code} after {seconds:.1f} s")
        begin = time.monotonic()
        ask(self.client, MODELS[0], asked)
        took, back = time.monotonic() - begin, self._whole()
        if not set(self.running.workers()) - set(before):
            raise StepFailed("no new worker was started")
        told = f"{code} after {seconds:.1f} s; asked again, whole and as a stream, in {took:.1f} s"
        return [f"{told}; a new worker joined in {back:.0f} s"]

    def _hit(self, asked: Question) -> tuple[str, float]:
        """The error of a stream whose worker is killed after its first text, and its seconds."""
        begun = threading.Event()

        def read() -> str:
            try:
                for piece in self._stream(asked):
                    if piece.choices and piece.choices[0].delta.content:
                        begun.set()
            except openai.APIError as error:
                return str(error.code)
            return "its whole answer"

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            process = self._busy_worker()  # known before the first text, after which a small model soon ends
            begun.wait(LOST_SECONDS * 10)
            process.kill()
            killed = time.monotonic()
            return reading.result(), time.monotonic() - killed

    def _stream(self, asked: Question) -> Iterator[Any]:
        messages: Any = asked.messages()
        yield from self.client.chat.completions.create(model=MODELS[0], messages=messages, stream=True, temperature=0)

    def _busy_worker(self) -> psutil.Process:
        end = time.monotonic() + RETURN_SECONDS
        while time.monotonic() < end:
            for process in self.running.workers():
                if _post(f"{address_of(process)}/worker_get_status")["queue_length"]:
                    return process
        raise StepFailed("no worker says that it is answering")

    def kill_controller(self) -> list[str]:
        """A new one starts, the workers register again, and answers come."""
        [controller] = self.running.programs("llava.serve.controller")
        controller.kill()
        controller.wait(10)
        back = self._whole()
        told = ask(self.client, MODELS[1], self.questions[1])
        return [f"all {len(self.running.workers())} workers registered again in {back:.0f} s", told.splitlines()[0]]

    def _whole(self) -> float:
        """Seconds until the controller has every worker."""
        begin = time.monotonic()
        while time.monotonic() - begin < RETURN_SECONDS:
            with contextlib.suppress(httpx.HTTPError):
                if _post(f"{self.running.controller}/worker_get_status")["speed"] == WORKERS * len(MODELS):
                    return time.monotonic() - begin
            time.sleep(0.3)
        raise StepFailed(f"not every worker was back after {RETURN_SECONDS:.0f} s")

    @contextlib.contextmanager
    def slowed(self) -> Iterator[None]:
        """Workers at a tenth of their speed: the small models' answers take half a second, too short to hit."""
        workers, over = self.running.workers(), threading.Event()

        def hold_up() -> None:
            while not over.wait(0.01):
                for act in (psutil.Process.suspend, psutil.Process.resume):
                    for process in workers:
                        with contextlib.suppress(psutil.NoSuchProcess):
                            act(process)
                    if act is psutil.Process.suspend:
                        time.sleep(0.1)

        thread = threading.Thread(target=hold_up, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def read(self) -> list[str]:
        """The page in a browser."""
        [cine] = [path for _, path in local_files() if path.name == CINE]
        return tour(self.running.page, cine, MODELS, self.out / "page", self.slowed)

    def end(self) -> list[str]:
        """Ctrl-C: nothing is left, and no log holds what was asked, answered or shown."""
        started = self.running.children()
        begin = time.monotonic()
        self.running.process.send_signal(2)
        status, seconds = self.running.process.wait(30), time.monotonic() - begin
        left = [process for process in started if process.is_running()]
        if status or left:
            raise StepFailed(f"exit status {status}, {len(left)} of {len(started)} programs left")
        texts = {DESCRIBE, STILL, *(asked.text for asked in self.questions)}
        texts |= {base64.b64encode(asked.frames[0].read_bytes())[:60].decode() for asked in self.questions}
        logs = [path for path in (self.out / "logs" / "serve").rglob("*") if path.is_file()]
        found = [path.name for path in logs for text in texts if text in path.read_text("utf-8", errors="replace")]
        if found or len(logs) < len(started):
            raise StepFailed(f"questions or pictures stand in {sorted(set(found))}")
        return [f"all {len(started)} programs gone in {seconds:.1f} s; no question or picture in {len(logs)} logs"]


def _post(address: str) -> dict[str, int]:
    answer: dict[str, int] = httpx.post(address, trust_env=False, timeout=5).json()
    return answer


def refused_without_keys(folder: Path) -> list[str]:
    """An address that others reach, without a key."""
    command = python(
        "-m", "llava_ultra_ext.cli", "serve", folder / MODELS[1], "--model-base", folder / "models" / "llama"
    )
    done = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 1 or "--api-keys-file" not in done.stderr:
        raise StepFailed(f"--host 0.0.0.0 without a key: exit status {done.returncode}")
    return [done.stderr.strip().splitlines()[-1]]


def timed(title: str, part: Callable[[], list[str]]) -> None:
    """Runs a part, says how long it took and what came of it."""
    print(f"{title:34}", end="", flush=True)
    begin = time.monotonic()
    told = part()
    print(f"{time.monotonic() - begin:4.0f} s", flush=True)
    for line in told:
        print("    " + line.replace("\n", "\n    "), flush=True)


def prepare(out: Path) -> None:
    """Empties the folder.

    Raises:
        StepFailed: it holds files of somebody else.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise StepFailed(f"--out {out}: is not empty and not of an earlier demo; choose another folder")
    shutil.rmtree(out, ignore_errors=True)
    (out / "logs").mkdir(parents=True)
    (out / MARK).touch()


def run(out: Path, quickstart: Path) -> None:
    """All parts.

    Raises:
        StepFailed, OSError, ValueError, KeyError: one of them failed.
    """
    prepare(out)
    timed("refused without keys", lambda: refused_without_keys(quickstart))
    flags = [
        *(quickstart / name for name in MODELS),
        "--model-base",
        quickstart / "models" / "llama",
        "--device",
        "cpu",
    ]
    flags += ["--workers", WORKERS, "--logs", out / "logs" / "serve"]
    begin = time.monotonic()
    print(f"{'llava-ultra serve':34}", end="", flush=True)
    with service(*flags, log=out / "logs" / "launcher.log") as running:
        print(f"{time.monotonic() - begin:4.0f} s\n    {running.page}\n    {running.api}", flush=True)
        demo = ServeDemo(out, quickstart, running)
        timed("asked by a program", demo.ask)
        timed("asked by a reader, in a browser", demo.read)
        timed("a worker is killed in mid-stream", demo.kill_worker)
        timed("the controller is killed", demo.kill_controller)
        timed("Ctrl-C", demo.end)
    for title, (script, *arguments) in BENCHES.items():
        log = out / "logs" / f"{Path(script).stem}.log"
        step(title, python(ROOT / "scripts" / "bench" / script, *arguments), log)
        shutil.copy(log, out / f"{Path(script).stem}.md")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0 when everything went well."""
    parser = argparse.ArgumentParser(prog="bash scripts/serve_demo.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder to empty and to write (default: %(default)s)")
    parser.add_argument("--models", type=Path, required=True, help="folder of the quick start")
    options = parser.parse_args(argv)
    out, begin = options.out.resolve(), time.monotonic()
    try:
        run(out, options.models.resolve())
    except (StepFailed, openai.OpenAIError, psutil.Error, OSError, ValueError, KeyError) as error:
        print(f"\nserve demo: FAILED: {error or type(error).__name__}", file=sys.stderr)
        return 1
    print(f"\nscreenshots: {out / 'page'}\ntables: {out}\n{time.monotonic() - begin:.0f} s after the installation")
    print("serve demo: OK")
    return 0


if __name__ == "__main__":
    stop_on_signals("serve demo")
    raise SystemExit(main())
