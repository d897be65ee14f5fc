"""The API as OpenAI's own client sees it: real workers for what is answered, fake ones for what goes wrong."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import llava_servers
import openai
import pytest
import uvicorn
from fake_workers import DIE, FakeWorker, ours, prompt_only, said, steps, stock
from llava_servers import Served
from PIL import Image
from run_llava import environment

from llava_ultra_ext.serve.client import ControllerClient
from llava_ultra_ext.serve.keys import ApiKeys
from llava_ultra_ext.serve.limits import Limits
from llava_ultra_ext.serve.openai_api import create_app, main
from llava_ultra_ext.serve.prompts import write_prompt
from llava_ultra_ext.serve.remote_pictures import AllowedAddresses

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
def _running(controller: str, **settings: Any) -> Iterator[Running]:
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


@pytest.fixture(scope="module")
def api(controller: str) -> Iterator[Running]:
    """In front of a controller that has fake workers only."""
    with _running(controller) as running:
        yield running


@pytest.fixture(scope="module")
def real(served: Served) -> Iterator[Running]:
    """In front of a real worker."""
    with _running(served.controller) as running:
        yield running


def _data_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _png(side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), 90).save(file, "PNG")
    return file.getvalue()


def _message(text: str = WORD, *addresses: str) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def _question(model: str, *addresses: str, **changes: Any) -> dict[str, Any]:
    return {"model": model, "messages": [_message(WORD, *addresses)], **changes}


def _code(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    return str(error["code"])


def _frames(served: Served) -> list[Path]:
    return sorted(served.trained.exams.glob("frames/*.png"))[:3]


def test_an_exam_is_answered_as_by_the_worker_itself(real: Running, served: Served) -> None:
    frames = _frames(served)
    message = _message(WORD, *(_data_url(path.read_bytes()) for path in frames))
    before = real.metrics()
    completion = real.openai().chat.completions.create(
        model=served.model, messages=[message], temperature=0, max_tokens=16
    )
    prompt = write_prompt("ultra_v1_zh", ((WORD, None),), len(frames))
    direct = llava_servers.ask_worker(served.worker, prompt, frames, max_new_tokens=16)
    [choice] = completion.choices
    assert choice.message.content == direct["text"].removeprefix(prompt).strip() != ""
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    exam = completion.model_extra["exam"]
    assert [exam["chosen_frames"]] == direct["chosen_frames"] and [exam["frame_scores"]] == direct["frame_scores"]
    assert len(exam["frame_scores"]) == len(frames)
    labels = f'{{model="{served.model}"}}'
    counted = {name: value - before.get(name, 0) for name, value in real.metrics().items()}
    assert counted[f'ultra_requests_total{{code="ok",model="{served.model}"}}'] == 1
    assert counted[f"ultra_first_token_seconds_count{labels}"] == counted[f"ultra_answer_seconds_count{labels}"] == 1
    assert counted[f"ultra_frames_sum{labels}"] == len(frames)
    assert real.metrics()["ultra_waiting"] == real.metrics()["ultra_running"] == 0


def test_a_stream_says_the_same_in_pieces(real: Running, served: Served) -> None:
    messages = [_message(WORD, *(_data_url(path.read_bytes()) for path in _frames(served)))]
    asked = {"model": served.model, "messages": messages, "temperature": 0, "max_tokens": 16}
    whole = real.openai().chat.completions.create(**asked)
    options = {"include_usage": True}
    *chunks, counted = real.openai().chat.completions.create(**asked, stream=True, stream_options=options)
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(deltas) == whole.choices[0].message.content
    assert sum(map(bool, deltas)) > 1, "in pieces"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].model_extra["exam"]["frame_scores"] == whole.model_extra["exam"]["frame_scores"]
    assert counted.choices == [] and counted.usage == whole.usage
    assert {chunk.id for chunk in chunks} == {counted.id}


def test_a_further_question_about_the_exam(real: Running, served: Served) -> None:
    frames = _frames(served)
    messages = [
        {"role": "system", "content": "简短回答。"},
        _message(WORD, *(_data_url(path.read_bytes()) for path in frames)),
        {"role": "assistant", "content": "胆囊壁光滑。"},
        {"role": "user", "content": "有结石吗？"},
    ]
    answer = real.openai().chat.completions.create(model=served.model, messages=messages, temperature=0, max_tokens=16)
    turns = ((f"简短回答。\n{WORD}", "胆囊壁光滑。"), ("有结石吗？", None))
    prompt = write_prompt("ultra_v1_zh", turns, len(frames))
    direct = llava_servers.ask_worker(served.worker, prompt, frames, max_new_tokens=16)
    assert answer.choices[0].message.content == direct["text"].removeprefix(prompt).strip()


def test_models_and_health(real: Running, served: Served, api: Running) -> None:
    assert [model.id for model in real.openai().models.list()] == [served.model]
    assert real.openai().models.retrieve(served.model).id == served.model
    with pytest.raises(openai.NotFoundError) as missing:
        real.openai().models.retrieve("<script>")
    assert missing.value.code == "wrong_model" and "script" not in str(missing.value)
    health = real.get("/health")
    assert health.status_code == 200
    assert health.json() == {"status": "ok", "models": [served.model], "workers": 1}


def test_health_without_a_controller() -> None:
    [port] = llava_servers.free_ports(1)
    with _running(f"http://127.0.0.1:{port}") as running:
        health = running.get("/health")
    assert health.status_code == 503
    assert health.json() == {"status": "no_worker", "models": [], "workers": 0}


def test_what_is_known_of_the_exam_is_handed_on(api: Running, controller: str, model: str) -> None:
    heat = [{"frame": 1, "grid": [1, 2], "scores": [0.25, -0.25]}]

    def script(params: dict[str, Any]) -> Iterator[Any]:
        yield prompt_only(params)
        yield {**said(params, "胆囊"), "heat": heat if params.get("heat") else []}
        yield {**said(params, "胆囊壁"), "times": {"total": 1.5}, "finish_reason": "length"}

    with FakeWorker(controller, model, script) as worker:
        answer = api.openai().chat.completions.create(
            model=model,
            messages=[_message(WORD, _data_url(_png()), _data_url(_png(16)))],
            top_p=0.5,
            max_completion_tokens=9,
            extra_body={"heat": True, "unknown": 1},
        )
    assert answer.choices[0].message.content == "胆囊壁" and answer.choices[0].finish_reason == "length"
    assert answer.usage is None
    assert answer.model_extra["exam"] == {
        "chosen_frames": [1],
        "frame_scores": [-0.5, -0.25],
        "alpha": 0.5,
        "times": {"total": 1.5},
        "heat": heat,
    }
    [asked] = worker.asked
    assert [base64.b64decode(image) for image in asked["images"]] == [_png(), _png(16)]
    assert (asked["temperature"], asked["top_p"], asked["max_new_tokens"]) == (0.2, 0.5, 9)


def test_openais_stop_ends_the_answer(api: Running, controller: str, model: str) -> None:
    with FakeWorker(controller, model, ours("壁厚。结论：正常")):
        answer = api.openai().chat.completions.create(model=model, messages=[_message()], stop=["结论"])
    assert answer.choices[0].message.content == "壁厚。" and answer.choices[0].finish_reason == "stop"


def test_a_death_in_mid_stream_is_an_error_of_the_client_and_the_next_request_is_answered(
    api: Running, controller: str, model: str
) -> None:
    half = steps(prompt_only, lambda params: said(params, "胆囊"), 0.1, DIE)
    client = api.openai()
    with FakeWorker(controller, model, half), FakeWorker(controller, model, ours("另一台")):
        start, got = time.monotonic(), ""
        with pytest.raises(openai.APIError) as lost:
            for chunk in client.chat.completions.create(model=model, messages=[_message()], stream=True):
                got += chunk.choices[0].delta.content or ""
        assert got == "胆囊" and lost.value.code == "worker_lost"
        assert time.monotonic() - start < 5
        answer = client.chat.completions.create(model=model, messages=[_message()])
        assert answer.choices[0].message.content == "另一台"
    assert api.metrics()[f'ultra_requests_total{{code="worker_lost",model="{model}"}}'] == 1


def test_a_worker_that_dies_before_its_first_text_is_not_noticed(api: Running, controller: str, model: str) -> None:
    with FakeWorker(controller, model, steps(prompt_only, DIE)), FakeWorker(controller, model, ours("另一台")):
        stream = api.openai().chat.completions.create(model=model, messages=[_message()], stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "另一台"


def test_an_error_before_the_answer_has_its_status(api: Running, controller: str, model: str) -> None:
    full = {"text": "Too many requests are waiting.", "error_code": 1, "code": "busy"}
    with FakeWorker(controller, model, steps(full)):
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as busy:
                api.openai().chat.completions.create(model=model, messages=[_message()], stream=stream)
            assert busy.value.status_code == 503 and busy.value.code == "busy"
    with pytest.raises(openai.NotFoundError) as wrong:
        api.openai().chat.completions.create(model="<b>none</b>", messages=[_message()])
    assert wrong.value.code == "wrong_model" and "none" not in wrong.value.body["message"]
    assert not any("none</b>" in sample for sample in api.metrics())


def test_a_stream_stays_alive_while_it_waits(api: Running, controller: str, model: str) -> None:
    def script(params: dict[str, Any]) -> Iterator[Any]:
        for _ in range(4):
            yield prompt_only(params)
            yield 0.1
        yield said(params, "好")

    with FakeWorker(controller, model, script):
        text = api.post(_question(model, stream=True)).text
    events = text.split("\n\n")
    assert events[0].startswith("data: ") and events[1:4] == [": waiting"] * 3
    assert events[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_cancels_the_worker(api: Running, controller: str, model: str, stream: bool) -> None:
    def endless(params: dict[str, Any]) -> Iterator[Any]:
        while True:
            yield said(params, "胆囊")
            yield 0.05

    with FakeWorker(controller, model, endless) as worker:
        with contextlib.suppress(httpx.ReadTimeout), httpx.Client(trust_env=False, timeout=0.5) as http:
            url = f"{api.address}/v1/chat/completions"
            with http.stream("POST", url, json=_question(model, stream=stream)) as response:
                next(response.iter_bytes())
        assert worker.hung_up.wait(5)
    _eventually(lambda: api.metrics().get(f'ultra_requests_total{{code="cancelled",model="{model}"}}') == 1)
    assert api.metrics()["ultra_waiting"] == api.metrics()["ultra_running"] == 0


def _eventually(true: Any) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


BAD = {
    "no JSON": (b"{", None),
    "half a surrogate": (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', None),
    "deep": (b"[" * 100_000, None),
    "list": ([], None),
    "no model": ({"messages": [_message()]}, "model"),
    "model of another type": (_question(["m"]), "model"),
    "no messages": ({"model": "m", "messages": []}, "messages"),
    "number as text": ({"model": "m", "messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    "role": ({"model": "m", "messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    "part": ({"model": "m", "messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages.0.content.0.type"),
    "no address": (
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "messages.0.content.0.image_url",
    ),
    "temperature as text": (_question("m", temperature="0"), "temperature"),
    "temperature": (_question("m", temperature=2.5), "temperature"),
    "NaN": (_question("m", temperature=float("nan")), "temperature"),
    "truth as number": (_question("m", max_tokens=True), "max_tokens"),
    "no token": (_question("m", max_tokens=0), "max_tokens"),
    "two answers": (_question("m", n=2), "n"),
    "stream": (_question("m", stream="yes"), "stream"),
    "empty stop": (_question("m", stop=""), "stop.0"),
    "no question": ({"model": "m", "messages": [{"role": "system", "content": "x"}]}, "messages"),
    "answer last": (
        {"model": "m", "messages": [_message(), {"role": "assistant", "content": "x"}]},
        "messages",
    ),
    "answer first": ({"model": "m", "messages": [{"role": "assistant", "content": "x"}, _message()]}, "messages.0"),
    "pictures in two messages": (
        {
            "model": "m",
            "messages": [
                _message("一", _data_url(_png())),
                {"role": "assistant", "content": "好"},
                _message("二", _data_url(_png())),
            ],
        },
        "messages.2",
    ),
    "picture of the system": (
        {"model": "m", "messages": [{**_message("一", _data_url(_png())), "role": "system"}, _message()]},
        "messages.0",
    ),
    "empty text": ({"model": "m", "messages": [{"role": "user", "content": " "}]}, None),
    "image token": ({"model": "m", "messages": [{"role": "user", "content": "<image>"}]}, None),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_told_the_field(api: Running, name: str, caplog: pytest.LogCaptureFixture) -> None:
    body, param = BAD[name]
    with caplog.at_level(logging.DEBUG, "llava_ultra_ext"):
        response = api.post(body)
    assert response.status_code == 400
    assert _code(response) == "bad_request" and response.json()["error"]["param"] == param
    assert WORD not in response.text and not caplog.records


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("", "address_not_allowed"),
        ("/etc/passwd", "address_not_allowed"),
        ("file:///etc/passwd", "address_not_allowed"),
        ("ftp://127.0.0.1/a.png", "address_not_allowed"),
        ("http://127.0.0.1/a.png", "address_not_allowed"),
        ("data:", "bad_picture"),
        ("data:text/html;base64,QUJD", "bad_picture"),
        ("data:image/png,QUJD", "bad_picture"),
        ("data:image/png;base64,QUJ", "bad_picture"),
        ("data:image/png;base64,QU JD", "bad_picture"),
        ("data:image/png;base64,QUJD", "bad_picture"),
        ("data:image/png;base64,", "bad_picture"),
        (_data_url(_png(64)[:-20]), "bad_picture"),
        (_data_url(b"\0" * 128 + b"DICM" + b"\0" * 64), "bad_picture"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused(api: Running, address: str, code: str) -> None:
    response = api.post(_question("m", _data_url(_png()), address))
    assert response.status_code == 400 and _code(response) == code
    assert "icture 2" in response.text and "passwd" not in response.text


def test_a_header_that_claims_far_too_many_pixels(api: Running) -> None:
    header = bytearray(_png())
    header[16:24] = (30_000).to_bytes(4, "big") * 2
    checked = header[:29] + __import__("zlib").crc32(bytes(header[12:29])).to_bytes(4, "big") + header[33:]
    response = api.post(_question("m", _data_url(bytes(checked))))
    assert response.status_code == 413 and _code(response) == "picture_too_large"


def test_limits_of_a_request(controller: str) -> None:
    limits = Limits(frames=2, request_bytes=2**18, picture_bytes=2**17, prompt_characters=50)
    url = _data_url(_png())
    with _running(controller, limits=limits) as running:
        assert _code(running.post(_question("m", *[url] * 3))) == "too_many_frames"
        assert _code(running.post({"model": "m", "messages": [_message("长" * 51)]})) == "context_too_long"
        large = "data:image/png;base64," + "A" * 4 * 2**16
        assert _code(running.post(_question("m", large))) == "request_too_large"
        whole = running.post(b" " * (2 * 2**20))
        assert whole.status_code == 413 and _code(whole) == "request_too_large"
        assert _code(running.post(_question("m", url))) == "wrong_model", "and what is within them goes on"


def test_many_large_requests_are_told_to_wait(controller: str, model: str) -> None:
    """Three of the largest fit; their memory is free again when they end."""
    limits = Limits(request_bytes=3)
    body = json.dumps(_question(model)).encode()
    body += b" " * (2**20 - len(body))
    with _running(controller, limits=limits) as running, FakeWorker(controller, model, stock("好", wait_s=2.0)):
        found: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: found.append(running.post(body))) for _ in range(3)]
        for thread in threads:
            thread.start()
        _eventually(lambda: running.metrics()["ultra_waiting"] == 3)
        time.sleep(0.5)
        busy = running.post(body)
        assert busy.status_code == 503 and _code(busy) == "busy"
        for thread in threads:
            thread.join()
        assert [response.status_code for response in found] == [200] * 3
        assert running.post(body).status_code == 200


def test_other_addresses_and_methods(api: Running) -> None:
    assert api.get("/v1/nothing").status_code == 404 and _code(api.get("/v1/nothing")) == "bad_request"
    assert api.get("/v1/chat/completions").status_code == 405
    _code(api.get("/v1/chat/completions"))
    assert _code(api.post(_question("m"), **{"Content-Type": "text/plain"})) == "bad_request"
    assert api.get("/docs").status_code == 404


def test_keys(controller: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first-key\n\n  second-key \n", encoding="utf-8")
    keys = ApiKeys.read(file, {"ULTRA_API_KEY": "third-key"})
    with _running(controller, keys=keys) as running:
        assert running.get("/health").status_code in (200, 503)
        for key in ("first-key", "second-key", "third-key"):
            running.openai(key).models.list()
        for headers in (
            {},
            {"Authorization": "first-key"},
            {"Authorization": "Bearer first-ke"},
            {"Authorization": "Bearer"},
        ):
            for response in (running.get("/v1/models", **headers), running.post(_question("m"), **headers)):
                assert response.status_code == 401 and _code(response) == "unauthorized"
            assert running.get("/metrics", **headers).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            running.openai("wrong-key").chat.completions.create(model="m", messages=[_message()])
        counted = running.get("/metrics", Authorization="Bearer third-key").text
        assert 'code="unauthorized"' in counted


@pytest.mark.parametrize("text", ["", "\n \n", "short\n", "with blank\n", "schlüssel-lang\n"])
def test_a_file_of_keys_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as refused:
        ApiKeys.read(file, {})
    assert not text.strip() or text.strip() not in str(refused.value)
    with pytest.raises(ValueError, match="cannot be read"):
        ApiKeys.read(tmp_path / "none", {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.5", "example.org", ""])
def test_other_machines_are_not_let_in_without_a_key(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ULTRA_API_KEY", raising=False)
    monkeypatch.setattr(uvicorn, "run", lambda *args, **kwargs: pytest.fail("it started"))
    assert main(["--host", host]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--api-keys-file" in line and "127.0.0.1" in line


def test_with_a_key_or_on_this_machine_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts: list[str] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, host, **kwargs: hosts.append(host))
    monkeypatch.delenv("ULTRA_API_KEY", raising=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        assert main(["--host", host]) == 0
    monkeypatch.setenv("ULTRA_API_KEY", "0123456789abcdef")
    assert main(["--host", "0.0.0.0"]) == 0
    assert hosts == ["127.0.0.1", "localhost", "::1", "0.0.0.0"]
    for wrong in (["--conv-mode", "none"], ["--allow-url", "file:///"], ["--api-keys-file", "/nowhere/keys"]):
        assert main(wrong) == 2


def test_the_program_serves_and_loads_no_model_library(served: Served) -> None:
    [port] = llava_servers.free_ports(1)
    code = (
        "import sys; from llava_ultra_ext.serve import openai_api as api; code = api.main(); "
        "print(sorted({'torch', 'transformers', 'llava'} & set(sys.modules)), code)"
    )
    command = [sys.executable, "-c", code, "--port", str(port), "--controller-address", served.controller]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        running = Running(f"http://127.0.0.1:{port}")
        _eventually_starts(port, process)
        assert running.get("/health").json()["workers"] == 1
        assert running.post(_question(served.model, max_tokens=2)).status_code == 200
        process.terminate()
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert out.strip() == "[] 0", err
    assert WORD not in err and "worker_generate" not in err


def _eventually_starts(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not llava_servers.listens(port):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def test_every_code_of_a_message_is_one_of_the_table() -> None:
    """A typing error in a code would be a KeyError in the middle of a request."""
    from llava_ultra_ext.serve.errors import CODES

    folder = Path(create_app.__code__.co_filename).parent
    written = {
        code for file in folder.glob("*.py") for code in re.findall(r'ServeError\(\s*"(\w+)"', file.read_text("utf-8"))
    }
    assert len(written) > 8 and written <= set(CODES)


def test_allowed_addresses_are_compared_part_by_part() -> None:
    allowed = AllowedAddresses(["https://pictures.example.org/exams/", "http://127.0.0.1:8042/wado"])
    for good in (
        "https://pictures.example.org/exams/1/2.png",
        "HTTPS://Pictures.Example.org:443/exams/a%20b.png?size=1",
        "http://127.0.0.1:8042/wado",
        "http://127.0.0.1:8042/wado/1",
    ):
        assert good in allowed, good
    for bad in (
        "http://pictures.example.org/exams/1.png",
        "https://pictures.example.org:444/exams/1.png",
        "https://pictures.example.org/examsecret",
        "https://pictures.example.org/other",
        "https://pictures.example.org/exams/../other",
        "https://pictures.example.org/exams/%2e%2e/other",
        "https://pictures.example.org/exams/%252e%252e/other",
        "https://pictures.example.org/exams/..%2fother",
        "https://pictures.example.org/exams/a%5c..%5cother",
        "https://pictures.example.org/exams//other",
        "https://pictures.example.org/exams/\\..\\other",
        "https://pictures.example.org@evil.org/exams/1.png",
        "https://evil.org#pictures.example.org/exams/1.png",
        "https://pictures.example.org.evil.org/exams/1.png",
        "https://pictures.example.org./exams/1.png",
        "https://pictures.example.org/exams/1.png#x",
        " https://pictures.example.org/exams/1.png",
        "https://pictures.example.org/exams/1.png\n",
        "https://pictures.example.org/exams/\r\nHost: evil",
        "https://pictureſ.example.org/exams/1.png",
        "http://2130706433:8042/wado",
        "http://0x7f.1:8042/wado",
        "http://[::ffff:127.0.0.1]:8042/wado",
        "http://127.0.0.1:08042/wadox",
        "//127.0.0.1:8042/wado",
        "http:/127.0.0.1:8042/wado",
    ):
        assert bad not in allowed, bad
    for prefix in (
        "",
        "example.org",
        "ftp://example.org/",
        "https://u@example.org/",
        "https://example.org/../",
        "http://a/?b",
    ):
        with pytest.raises(ValueError, match="--allow-url"):
            AllowedAddresses([prefix])


@pytest.fixture
def pictures() -> Iterator[tuple[str, list[str]]]:
    """A server of pictures: its address, and the paths that it was asked for."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            if self.path.startswith("/exams/moved"):
                self.send_response(302)
                self.send_header("Location", "/secret/1.png")
                self.end_headers()
                return
            self.send_response(200 if self.path.endswith(".png") else 404)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(b"x" * 2**20 if "large" in self.path else _png())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_remote_pictures_come_from_allowed_addresses_only(
    pictures: tuple[str, list[str]], controller: str, model: str
) -> None:
    address, seen = pictures
    allowed, limits = AllowedAddresses([f"{address}/exams/"]), Limits(picture_bytes=2**16)
    with (
        _running(controller, allowed=allowed, limits=limits) as running,
        FakeWorker(controller, model, ours("好")) as worker,
    ):
        for refused in (
            f"{address}/secret/1.png",
            f"{address}/exams/../secret/1.png",
            address.replace("127.0.0.1", "localhost"),
        ):
            assert _code(running.post(_question(model, f"{address}/exams/1.png", refused))) == "address_not_allowed"
        assert seen == [], "not even the allowed one beside it"
        assert running.post(_question(model, f"{address}/exams/1.png", f"{address}/exams/2.png")).status_code == 200
        assert seen == ["/exams/1.png", "/exams/2.png"]
        assert [base64.b64decode(image) for image in worker.asked[0]["images"]] == [_png()] * 2
        assert _code(running.post(_question(model, f"{address}/exams/moved"))) == "bad_picture"
        assert _code(running.post(_question(model, f"{address}/exams/none"))) == "bad_picture"
        assert _code(running.post(_question(model, f"{address}/exams/large.png"))) == "request_too_large"
        assert all(path.startswith("/exams/") for path in seen)
        assert len(worker.asked) == 1


def test_without_an_allow_list_no_connection_is_opened(
    pictures: tuple[str, list[str]], api: Running, model: str
) -> None:
    address, seen = pictures
    assert _code(api.post(_question(model, f"{address}/exams/1.png"))) == "address_not_allowed"
    assert seen == []
