"""LLaVA's own controller and model worker, and questions about exams asked over HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_ultra_ext.conversation import SYSTEM
from processes import child, failure, python

MODEL = "llava-ultra-lora"
IMAGE_LINE = "<image>\n"
START_SECONDS, ANSWER_SECONDS = 180, 120
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would not reach this machine's ports


@contextlib.contextmanager
def serve(model: Path, base: Path, logs: Path) -> Iterator[str]:
    """Starts controller and worker on free ports; gives the controller's address once the worker has registered.

    Raises:
        StepFailed: One of them ended, or did not answer in time.
    """
    ports = free_ports(2)
    controller, worker = (f"http://127.0.0.1:{port}" for port in ports)
    one = python("-m", "llava.serve.controller", "--host", "127.0.0.1", "--port", ports[0])
    two = python("-m", "llava.serve.model_worker", "--host", "127.0.0.1", "--port", ports[1], "--device", "cpu")
    two += ["--controller-address", controller, "--worker-address", worker]
    two += ["--model-path", str(model), "--model-base", str(base), "--model-name", MODEL]
    # LLaVA writes log files of its own where it is started.
    with child(one, logs / "controller.log", folder=logs) as process:
        _wait("LLaVA's controller", process, logs / "controller.log", controller, "models")
        with child(two, logs / "model_worker.log", folder=logs) as process:
            _wait("LLaVA's model_worker", process, logs / "model_worker.log", controller, MODEL)
            yield controller


def ask(controller: str, images: list[Path], question: str) -> dict[str, Any]:
    """Asks one question about one exam and returns the stream's last message, `text` without the prompt.

    Keys: `text`, `error_code`, and for an answer `chosen_frames` and `frame_scores`, a list for each exam.
    """
    asked = prompt(len(images), question)
    request = {
        "model": MODEL,
        "prompt": asked,
        "images": [base64.b64encode(path.read_bytes()).decode() for path in images],
        "temperature": 0,
        "max_new_tokens": 64,
        "stop": "</s>",
    }
    try:
        with _post(f"{controller}/worker_generate_stream", request, ANSWER_SECONDS) as response:
            last = response.read().rstrip(b"\0").rsplit(b"\0", 1)[-1]
        message: dict[str, Any] = json.loads(last)
    except (OSError, ValueError) as error:
        return {"text": f"{type(error).__name__}: {error}", "error_code": 1}
    message["text"] = message["text"].removeprefix(asked).strip()
    return message


def prompt(frames: int, question: str) -> str:
    """A first question in the template `ultra_v1_zh`, as LLaVA's `Conversation.get_prompt` writes it."""
    return f"{SYSTEM} 用户: {IMAGE_LINE * frames}{question} 助手:"


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [entry.getsockname()[1] for entry in sockets]


def _post(address: str, body: Mapping[str, Any] | None = None, timeout: float = 5) -> Any:
    data = json.dumps(body or {}).encode()
    return _direct.open(urllib.request.Request(address, data, {"Content-Type": "application/json"}), timeout=timeout)


def _wait(title: str, process: subprocess.Popen[bytes], log: Path, controller: str, word: str) -> None:
    """Until the controller's list of models holds `word`."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise failure(title, f"ended with exit status {process.returncode}", log)
        with contextlib.suppress(OSError), _post(f"{controller}/list_models") as response:
            if word in response.read().decode():
                return
        time.sleep(0.5)
    raise failure(title, f"was not ready after {START_SECONDS} s", log)
