"""LLaVA's own controller and model_worker as child processes on free ports of this machine."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_llava import armed_command, environment
from trained import Trained

from serving import free_ports

START_S = 240
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Served:
    """A controller with one worker of ours.

    Args:
        controller: its address.
        worker: address of the worker.
        model: the worker's model.
        trained: folders of that model and of the exams it was trained on.
    """

    controller: str
    worker: str
    model: str
    trained: Trained


@contextlib.contextmanager
def server(command: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A child process from when it is ready; killed at the end. LLaVA's write log files where they are started."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment(), cwd=log.parent, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + START_S
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def controller(folder: Path) -> Iterator[str]:
    """LLaVA's controller; its address."""
    [port] = free_ports(1)
    command = armed_command("llava.serve.controller", "--host", "127.0.0.1", "--port", port)
    with server(command, folder / f"controller-{port}.log", lambda: listens(port)):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def worker(controller: str, trained: Trained, model: str, folder: Path) -> Iterator[str]:
    """LLaVA's model_worker with a model of ours, registered and listening; its address."""
    [port] = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = armed_command(
        *("llava.serve.model_worker", "--host", "127.0.0.1", "--port", port, "--device", "cpu"),
        *("--controller-address", controller, "--worker-address", address, "--model-name", model),
        *("--model-path", trained.lora, "--model-base", trained.base),
    )
    with server(command, folder / f"worker-{port}.log", lambda: listens(port)):
        yield address


def post(address: str, body: Any = None) -> Any:
    """What a server answers to a JSON body."""
    request = urllib.request.Request(address, json.dumps(body or {}).encode(), {"Content-Type": "application/json"})
    with _direct.open(request, timeout=10) as response:
        return json.loads(response.read() or b"null")


def ask_worker(worker: str, prompt: str, images: list[Path], max_new_tokens: int) -> dict[str, Any]:
    """The last message of a worker that is asked directly, at temperature 0."""
    request = {
        "prompt": prompt,
        "images": [base64.b64encode(path.read_bytes()).decode() for path in images],
        "temperature": 0,
        "max_new_tokens": max_new_tokens,
        "stop": "</s>",
    }
    headers = {"Content-Type": "application/json"}
    data = json.dumps(request).encode()
    with _direct.open(urllib.request.Request(f"{worker}/worker_generate_stream", data, headers), timeout=120) as stream:
        message: dict[str, Any] = json.loads(stream.read().rstrip(b"\0").rsplit(b"\0", 1)[-1])
    return message


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0
