"""What the serving benchmarks share: running servers, ours and stock LLaVA's, a client of the API, a table."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from serve_making import Exam

START_SECONDS = 300


@dataclass(frozen=True)
class Reply:
    """What became of a request.

    Args:
        code: ok, or the error's code.
        text: of the answer.
        first: seconds to the first text.
        total: seconds to the end.
        exam: chosen frames and scores, as the API says them.
    """

    code: str
    text: str = ""
    first: float = 0.0
    total: float = 0.0
    exam: Mapping[str, Any] | None = None


@dataclass
class Service:
    """A running `llava-ultra serve`.

    Args:
        process: the launcher.
        api: address, with `/v1`.
        page: address, or nothing.
        controller: address.
    """

    process: subprocess.Popen[str]
    api: str
    page: str
    controller: str

    def programs(self, module: str) -> list[psutil.Process]:
        """Those of the launcher's programs that run this module, in the order of their ports."""
        found = []
        for child in self.children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                words = child.cmdline()
                if module in words:
                    found.append((words[words.index("--port") + 1], child))
        return [child for _, child in sorted(found, key=lambda entry: entry[0])]

    def children(self) -> list[psutil.Process]:
        """All of the launcher's programs."""
        return psutil.Process(self.process.pid).children()

    def workers(self) -> list[psutil.Process]:
        """LLaVA's workers."""
        return self.programs("llava.serve.model_worker")


def address_of(process: psutil.Process) -> str:
    """Where a worker listens."""
    words = process.cmdline()
    return f"http://127.0.0.1:{words[words.index('--port') + 1]}"


@contextlib.contextmanager
def service(*arguments: object, log: Path, **variables: str) -> Iterator[Service]:
    """`llava-ultra serve` on free ports, from when it is ready; ended with Ctrl-C.

    Raises:
        SystemExit: it did not start; its reason is in the message.
    """
    command = [sys.executable, "-m", "llava_ultra_ext.cli", "serve", *map(str, arguments)]
    command += ["--port", "0", "--page-port", "0"]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **variables}
        )
    try:
        assert process.stdout is not None
        told = {"page": ""}
        for line in process.stdout:
            name, _, address = line.strip().partition(" ")
            if name == "model":
                break
            told[name] = address.strip()
        if "API" not in told:
            raise SystemExit(f"llava-ultra serve did not start: {log.read_text(encoding='utf-8')[-500:]}")
        yield Service(process, told["API"], told["page"], told["controller"])
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            process.kill()


@contextlib.contextmanager
def stock_service(model: Path, workers: int, logs: Path) -> Iterator[tuple[str, list[psutil.Process]]]:
    """LLaVA's own controller and workers with the plugin off: the controller's address, and the workers."""
    from llava_ultra_ext.serve.launch import held_port

    logs.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // workers))  # as `llava-ultra serve` gives its own
    env = {**os.environ, "ULTRA_EXT": "off", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    held = [held_port() for _ in range(workers + 1)]  # open until the end
    ports = [one.getsockname()[1] for one in held]
    controller, *addresses = (f"http://127.0.0.1:{port}" for port in ports)
    commands = [["llava.serve.controller", "--host", "127.0.0.1", "--port", str(ports[0])]]
    for port, address in zip(ports[1:], addresses, strict=True):
        command = ["llava.serve.model_worker", "--host", "127.0.0.1", "--port", str(port), "--worker-address", address]
        command += ["--controller-address", controller, "--model-path", str(model), "--device", "cpu"]
        commands.append(command)
    with contextlib.ExitStack() as stack:
        for one in held:
            stack.enter_context(one)
        running = []
        for number, command in enumerate(commands):
            sink = stack.enter_context((logs / f"stock-{number}.log").open("wb"))
            running.append(
                subprocess.Popen([sys.executable, "-m", *command], cwd=logs, env=env, stdout=sink, stderr=sink)
            )
            stack.callback(running[-1].wait)
            stack.callback(running[-1].kill)  # LLaVA's worker does not end at a signal while its heart beats
            ask = "list_models" if number == 0 else "worker_get_status"
            if number == 0:
                _wait_for(f"{controller}/{ask}", running)
        for address in addresses:
            _wait_for(f"{address}/worker_get_status", running)
        yield controller, [psutil.Process(process.pid) for process in running[1:]]


def _wait_for(address: str, running: Sequence[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and all(process.poll() is None for process in running):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.post(address, trust_env=False, timeout=5).status_code == 200:
                return
        time.sleep(0.3)
    raise SystemExit("LLaVA's own servers did not start.")


def request_body(model: str, exam: Exam, tokens: int, **more: Any) -> bytes:
    """A streamed chat completion at temperature 0."""
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": address}} for address in exam.addresses()
    ]
    content.append({"type": "text", "text": exam.text})
    asked = {"model": model, "messages": [{"role": "user", "content": content}], "stream": True}
    return json.dumps({**asked, "temperature": 0, "max_tokens": tokens, **more}).encode()


class ApiClient:
    """Asks the API over one pool of connections.

    Args:
        api: address, with `/v1`.
        timeout: seconds without a byte.
    """

    def __init__(self, api: str, timeout: float = 60.0) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self.http = httpx.AsyncClient(trust_env=False, timeout=timeout, limits=limits)
        self.address = f"{api}/chat/completions"

    async def ask(self, body: bytes, started: asyncio.Event | None = None) -> Reply:
        """The answer to a streamed request; `started` is set at its first text."""
        begin, first, text = time.monotonic(), 0.0, ""
        headers, exam, whole = {"Content-Type": "application/json"}, None, False
        try:
            async with self.http.stream("POST", self.address, content=body, headers=headers) as response:
                if response.status_code != 200:
                    await response.aread()
                    return Reply(error_code(response), total=time.monotonic() - begin)
                async for line in response.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        whole = True
                        break
                    said = json.loads(line[6:])
                    if "error" in said:
                        return Reply(said["error"]["code"], text, first, time.monotonic() - begin)
                    exam = said.get("exam", exam)
                    more = said["choices"][0]["delta"].get("content", "") if said["choices"] else ""
                    if more and not text:
                        first = time.monotonic() - begin
                        if started is not None:
                            started.set()
                    text += more
        except httpx.HTTPError as error:
            return Reply(f"connection: {type(error).__name__}", text, first, time.monotonic() - begin)
        return Reply("ok" if whole else "cut off", text, first, time.monotonic() - begin, exam)

    async def close(self) -> None:
        """Ends the pool."""
        await self.http.aclose()


def error_code(response: httpx.Response) -> str:
    """The code of an error in OpenAI's form, or the status."""
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return str(response.status_code)


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted or unsorted values; nan of none."""
    return float(np.percentile(values, 100 * share)) if values else float("nan")


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """A table whose first row is the head."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else re.sub(r"\s+", " ", str(value)).replace("|", r"\|")


def machine() -> str:
    """The machine in a few words."""
    return f"{os.cpu_count()} processors, {platform.system()} {platform.machine()}"
