"""An API that listens, and what tests ask it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import uvicorn
from PIL import Image

from llava_ultra_ext.serve.client import ControllerClient
from llava_ultra_ext.serve.openai_api import create_app

SILENCE_S = 0.5
WORD = "请描述该胆囊超声图像。"


@dataclass(frozen=True)
class Running:
    """An API that listens."""

    address: str

    def openai(self, key: str = "none") -> openai.OpenAI:
        http = httpx.Client(trust_env=False)
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, http_client=http, max_retries=0, timeout=60)

    def post(self, body: Any, **headers: str) -> httpx.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        url = f"{self.address}/v1/chat/completions"
        return httpx.post(url, content=data, headers=headers, trust_env=False, timeout=60)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.address + path, headers=headers, trust_env=False, timeout=60)

    def metrics(self) -> dict[str, float]:
        """Sample (name and labels) -> value."""
        lines = self.get("/metrics").text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


@contextlib.contextmanager
def running_api(controller: str, **settings: Any) -> Iterator[Running]:
    """In a thread of this process; `settings` are those of `create_app`."""
    app = create_app(ControllerClient(controller, silence_s=SILENCE_S), **settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield Running(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(10)


def data_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def png(side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), 90).save(file, "PNG")
    return file.getvalue()


def user_message(text: str = WORD, *addresses: str) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def chat_request(model: str, *addresses: str, **changes: Any) -> dict[str, Any]:
    return {"model": model, "messages": [user_message(WORD, *addresses)], **changes}


def code_of(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    return str(error["code"])


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
