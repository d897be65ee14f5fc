"""Workers that answer as a test says: quickly, late, not at all, or until they die in the middle of an answer."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llava_servers import post

DIE = "die"
"""A step of a script: every connection breaks and nobody listens any more, as after a kill."""

Step = dict[str, Any] | float | str
Script = Callable[[dict[str, Any]], Iterator[Step]]
"""From a request to messages, seconds of silence, or `DIE`."""


class FakeWorker(ThreadingHTTPServer):
    """A worker of `model`, registered at a controller without heart beats.

    Args:
        status_after_s: how long it takes to say its status.
    """

    daemon_threads = True

    def __init__(self, controller: str, model: str, script: Script, status_after_s: float = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.status_after_s = script, status_after_s
        self.asked: list[dict[str, Any]] = []
        self.hung_up = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"
        self._connections: set[Any] = set()
        self._dead = False
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        self.status = {"model_names": [model], "speed": 1, "queue_length": 0}
        registration = {"worker_name": self.address, "check_heart_beat": False, "worker_status": self.status}
        post(f"{controller}/register_worker", registration)

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up in these tests."""

    def die(self) -> None:
        if self._dead:
            return
        self._dead = True
        self.shutdown()
        self.socket.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(2)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeWorker

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if self.path == "/worker_get_status":
            time.sleep(self.server.status_after_s)
            self._whole(self.server.status)
            return
        self.server.asked.append(body)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for step in self.server.script(body):
                self._take(step)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.server.hung_up.set()

    def _take(self, step: Step) -> None:
        if step == DIE:
            self.server.die()
            raise ConnectionError
        if isinstance(step, float):
            time.sleep(step)
            return
        line = (step if isinstance(step, str) else json.dumps(step)).encode() + b"\0"
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.flush()

    def _whole(self, values: Any) -> None:
        data = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def ours(text: str, wait_s: float = 0.0) -> Script:
    """A worker of ours: its first message comes at once, then the answer, a character a message."""

    def script(params: dict[str, Any]) -> Iterator[Step]:
        yield {"text": params["prompt"], "error_code": 0, "waiting": 1}
        yield wait_s
        for size in range(1, len(text) + 1):
            yield said(params, text[:size])
        yield {**said(params, text), "times": {"waiting": 0.0, "first_token": 0.1, "total": 0.2}}

    return script


def stock(text: str, wait_s: float = 0.0) -> Script:
    """A stock worker: nothing until the first token, and nothing but text."""

    def script(params: dict[str, Any]) -> Iterator[Step]:
        yield wait_s
        for size in range(1, len(text) + 1):
            yield {"text": params["prompt"] + " " + text[:size], "error_code": 0}

    return script


def said(params: dict[str, Any], text: str) -> dict[str, Any]:
    """A message of a worker of ours with an answer so far."""
    chosen = {"chosen_frames": [[1]], "frame_scores": [[-0.5, -0.25]], "alpha": 0.5}
    return {"text": params["prompt"] + " " + text, "error_code": 0, **chosen}


def steps(*given: Step | Callable[[dict[str, Any]], Step]) -> Script:
    """A script of fixed steps; a function makes a step of the request."""

    def script(params: dict[str, Any]) -> Iterator[Step]:
        for step in given:
            yield step(params) if callable(step) else step

    return script


def prompt_only(params: dict[str, Any]) -> Step:
    """The first message of a worker of ours."""
    return {"text": params["prompt"], "error_code": 0, "waiting": 0}
