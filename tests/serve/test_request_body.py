"""How much a request may hold, alone and with others."""

from __future__ import annotations

import json
import threading
import time

import httpx
from api_server import chat_request, code_of, data_url, eventually, png, running_api, user_message
from fake_workers import FakeWorker, stock

from llava_ultra_ext.serve.limits import Limits


def test_limits_of_a_request(controller: str) -> None:
    limits = Limits(frames=2, request_bytes=2**18, picture_bytes=2**17, prompt_characters=50)
    url = data_url(png())
    with running_api(controller, limits=limits) as running:
        assert code_of(running.post(chat_request("m", *[url] * 3))) == "too_many_frames"
        assert code_of(running.post({"model": "m", "messages": [user_message("长" * 51)]})) == "context_too_long"
        large = "data:image/png;base64," + "A" * 4 * 2**16
        assert code_of(running.post(chat_request("m", large))) == "request_too_large"
        whole = running.post(b" " * (2 * 2**20))
        assert whole.status_code == 413 and code_of(whole) == "request_too_large"
        assert code_of(running.post(chat_request("m", url))) == "wrong_model", "and what is within them goes on"


def test_many_large_requests_are_told_to_wait(controller: str, model: str) -> None:
    """Three of the largest fit; their memory is free again when they end."""
    limits = Limits(request_bytes=3)
    body = json.dumps(chat_request(model)).encode()
    body += b" " * (2**20 - len(body))
    with running_api(controller, limits=limits) as running, FakeWorker(controller, model, stock("好", wait_s=2.0)):
        found: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: found.append(running.post(body))) for _ in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: running.metrics()["ultra_waiting"] == 3)
        time.sleep(0.5)
        busy = running.post(body)
        assert busy.status_code == 503 and code_of(busy) == "busy"
        for thread in threads:
            thread.join()
        assert [response.status_code for response in found] == [200] * 3
        assert running.post(body).status_code == 200
