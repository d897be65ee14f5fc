"""The API as OpenAI's own client sees it: real workers for what is answered, fake ones for what goes wrong."""

from __future__ import annotations

import base64
import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import llava_servers
import openai
import pytest
from api_server import WORD, Running, chat_request, code_of, data_url, eventually, png, running_api, user_message
from fake_workers import DIE, FakeWorker, ours, prompt_only, said, steps
from llava_servers import Served
from run_llava import environment

from llava_ultra_ext.serve.errors import CODES
from llava_ultra_ext.serve.openai_api import create_app
from llava_ultra_ext.serve.prompts import write_prompt


@pytest.fixture(scope="module")
def real(served: Served) -> Iterator[Running]:
    """In front of a real worker."""
    with running_api(served.controller) as running:
        yield running


def _frames(served: Served) -> list[Path]:
    return sorted(served.trained.exams.glob("frames/*.png"))[:3]


def test_an_exam_is_answered_as_by_the_worker_itself(real: Running, served: Served) -> None:
    frames = _frames(served)
    message = user_message(WORD, *(data_url(path.read_bytes()) for path in frames))
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
    messages = [user_message(WORD, *(data_url(path.read_bytes()) for path in _frames(served)))]
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
        user_message(WORD, *(data_url(path.read_bytes()) for path in frames)),
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
    with running_api(f"http://127.0.0.1:{port}") as running:
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
            messages=[user_message(WORD, data_url(png()), data_url(png(16)))],
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
    assert [base64.b64decode(image) for image in asked["images"]] == [png(), png(16)]
    assert (asked["temperature"], asked["top_p"], asked["max_new_tokens"]) == (0.2, 0.5, 9)


def test_openais_stop_ends_the_answer(api: Running, controller: str, model: str) -> None:
    with FakeWorker(controller, model, ours("壁厚。结论：正常")):
        answer = api.openai().chat.completions.create(model=model, messages=[user_message()], stop=["结论"])
    assert answer.choices[0].message.content == "壁厚。" and answer.choices[0].finish_reason == "stop"


def test_a_death_in_mid_stream_is_an_error_of_the_client_and_the_next_request_is_answered(
    api: Running, controller: str, model: str
) -> None:
    half = steps(prompt_only, lambda params: said(params, "胆囊"), 0.1, DIE)
    client = api.openai()
    with FakeWorker(controller, model, half), FakeWorker(controller, model, ours("另一台")):
        start, got = time.monotonic(), ""
        with pytest.raises(openai.APIError) as lost:
            for chunk in client.chat.completions.create(model=model, messages=[user_message()], stream=True):
                got += chunk.choices[0].delta.content or ""
        assert got == "胆囊" and lost.value.code == "worker_lost"
        assert time.monotonic() - start < 5
        answer = client.chat.completions.create(model=model, messages=[user_message()])
        assert answer.choices[0].message.content == "另一台"
    for code in ("worker_lost", "ok"):
        assert api.metrics()[f'ultra_requests_total{{code="{code}",model="{model}"}}'] == 1


def test_a_worker_that_dies_before_its_first_text_is_not_noticed(api: Running, controller: str, model: str) -> None:
    with FakeWorker(controller, model, steps(prompt_only, DIE)), FakeWorker(controller, model, ours("另一台")):
        stream = api.openai().chat.completions.create(model=model, messages=[user_message()], stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "另一台"


def test_an_error_before_the_answer_has_its_status(api: Running, controller: str, model: str) -> None:
    full = {"text": "Too many requests are waiting.", "error_code": 1, "code": "busy"}
    with FakeWorker(controller, model, steps(full)):
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as busy:
                api.openai().chat.completions.create(model=model, messages=[user_message()], stream=stream)
            assert busy.value.status_code == 503 and busy.value.code == "busy"
    with pytest.raises(openai.NotFoundError) as wrong:
        api.openai().chat.completions.create(model="<b>none</b>", messages=[user_message()])
    assert wrong.value.code == "wrong_model" and "none" not in wrong.value.body["message"]
    assert not any("none</b>" in sample for sample in api.metrics())


def test_a_stream_stays_alive_while_it_waits(api: Running, controller: str, model: str) -> None:
    def script(params: dict[str, Any]) -> Iterator[Any]:
        for _ in range(4):
            yield prompt_only(params)
            yield 0.1
        yield said(params, "好")

    with FakeWorker(controller, model, script):
        text = api.post(chat_request(model, stream=True)).text
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
            with http.stream("POST", url, json=chat_request(model, stream=stream)) as response:
                next(response.iter_bytes())
        assert worker.hung_up.wait(5)
    eventually(lambda: api.metrics().get(f'ultra_requests_total{{code="cancelled",model="{model}"}}') == 1)
    assert api.metrics()["ultra_waiting"] == api.metrics()["ultra_running"] == 0


def test_other_addresses_and_methods(api: Running) -> None:
    assert api.get("/v1/nothing").status_code == 404 and code_of(api.get("/v1/nothing")) == "bad_request"
    assert api.get("/v1/chat/completions").status_code == 405
    code_of(api.get("/v1/chat/completions"))
    assert code_of(api.post(chat_request("m"), **{"Content-Type": "text/plain"})) == "bad_request"
    assert api.get("/docs").status_code == 404


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
        assert running.post(chat_request(served.model, max_tokens=2)).status_code == 200
        process.send_signal(signal.SIGINT)
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
    folder = Path(create_app.__code__.co_filename).parent
    written = {
        code for file in folder.glob("*.py") for code in re.findall(r'ServeError\(\s*"(\w+)"', file.read_text("utf-8"))
    }
    assert len(written) > 8 and written <= set(CODES)
