"""LLaVA's unedited ``model_worker`` module in this process, served over HTTP, so that tests can make it fail."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
import uvicorn
from llava_servers import free_ports
from trained import Trained

from llava_ultra_ext import activate

WAIT_S = 30
NEVER = "no such stop word"


@dataclass
class OwnWorker:
    """A worker whose every part may be patched.

    Args:
        host: ``llava.serve.model_worker``.
        worker: its ``ModelWorker``, not registered anywhere.
        address: where it listens.
        pictures: frames of one exam, in base64.
    """

    host: ModuleType
    worker: Any
    address: str
    pictures: list[str]
    answers: list[Answer] = field(default_factory=list)

    @property
    def waiting(self) -> Any:
        """Its queue."""
        return self.worker.exam_service.queue

    def request(self, frames: int = 3, **changes: Any) -> dict[str, Any]:
        """A question about an exam of so many frames."""
        prompt = "用户: " + "<image>\n" * frames + "请描述。 助手:"
        images = (self.pictures * 30)[:frames]
        return {"prompt": prompt, "images": images, "temperature": 0, "max_new_tokens": 4, "stop": "</s>", **changes}

    def messages(self, **changes: Any) -> list[dict[str, Any]]:
        """Of the gate, without HTTP."""
        stream = self.worker.generate_stream_gate(self.request(**changes))
        return [json.loads(message[:-1]) for message in stream]

    def ask(self, **changes: Any) -> Answer:
        """Over HTTP, read by a thread; ended by the fixture."""
        answer = Answer(self.address, self.request(**changes))
        self.answers.append(answer)
        return answer


class Answer:
    """What arrives of one answer."""

    def __init__(self, address: str, request: dict[str, Any]) -> None:
        self.messages: list[dict[str, Any]] = []
        self._response = requests.post(f"{address}/worker_generate_stream", json=request, stream=True, timeout=WAIT_S)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(requests.RequestException, AttributeError, ValueError):
            for line in self._response.iter_lines(chunk_size=1, delimiter=b"\0"):
                if line:
                    self.messages.append(json.loads(line))

    def hang_up(self) -> None:
        """As a browser whose page was closed: the reader's connection breaks."""
        import socket

        with contextlib.suppress(OSError, AttributeError):
            self._response.raw._fp.fp.raw._sock.shutdown(socket.SHUT_RDWR)
        self._response.close()

    def last(self) -> dict[str, Any]:
        """The last message, once all have come."""
        self._reader.join(WAIT_S)
        assert not self._reader.is_alive()
        return self.messages[-1]


def until(true: Callable[[], Any], seconds: float = WAIT_S) -> None:
    """Waits for something to come true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def own_worker(trained: Trained, folder: Path) -> Iterator[OwnWorker]:
    """Loads the model and serves it until the end."""
    frames = sorted(trained.exams.glob("frames/*0003*.png"))
    pictures = [base64.b64encode(frame.read_bytes()).decode() for frame in frames]
    with _module(folder) as host:
        model = (str(trained.lora), str(trained.base), None)
        worker = host.worker = host.ModelWorker("", "", "0", True, *model, False, False, "cpu")
        [port] = free_ports(1)
        server = uvicorn.Server(uvicorn.Config(host.app, host="127.0.0.1", port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        until(lambda: server.started)
        worker.get_queue_length()
        try:
            yield OwnWorker(host, worker, f"http://127.0.0.1:{port}", pictures)
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
            del host.worker


@contextlib.contextmanager
def _module(folder: Path) -> Iterator[ModuleType]:
    """The armed module. Importing it takes the process's output away and puts a log file where it is started."""
    before = activate.is_armed()
    activate.arm()
    streams = sys.stdout, sys.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        import llava.serve.model_worker as host
    sys.stdout, sys.stderr = streams
    try:
        yield host
    finally:
        handler = sys.modules["llava.utils"].handler
        for logger in list(logging.root.manager.loggerDict.values()):
            if isinstance(logger, logging.Logger):
                logger.removeHandler(handler)
        if not before:
            activate.disarm()
