"""Slow models, clients that go away, full queues, no memory: LLaVA's unedited worker module, made to fail."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import requests
import torch
from own_worker import NEVER, OwnWorker, own_worker, until
from PIL import Image, ImageFile
from trained import Trained

from llava_ultra_ext.model.ultra_arch import UltraMetaForCausalLM
from llava_ultra_ext.serve import exam_app, exam_stream, service, worker

SECRET = "张三"


@pytest.fixture(scope="module")
def loaded(trained_lora: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnWorker]:
    with own_worker(trained_lora, tmp_path_factory.mktemp("own-worker")) as found:
        yield found


@pytest.fixture
def own(loaded: OwnWorker, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnWorker]:
    """Quick keep-alives; at the end nobody is left in the queue."""
    for module in (exam_stream, worker):
        monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", 0.05)
    yield loaded
    for answer in loaded.answers:
        answer.hang_up()
    loaded.answers.clear()
    until(lambda: len(loaded.waiting) == 0)


@pytest.fixture
def encoding(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Patches the model: `before` runs before frames are encoded; the list gets how many frames each time."""
    original = UltraMetaForCausalLM.encode_images

    def patch(before: Callable[[], Any]) -> list[int]:
        encoded: list[int] = []

        def encode_images(self: Any, images: torch.Tensor) -> torch.Tensor:
            if images.ndim == 4:
                encoded.append(len(images))
                before()
            return original(self, images)

        monkeypatch.setattr(UltraMetaForCausalLM, "encode_images", encode_images)
        return encoded

    return patch


@pytest.fixture
def held(encoding: Callable[..., list[int]]) -> Iterator[tuple[list[int], threading.Event]]:
    """The encoder waits until the event is set."""
    go = threading.Event()
    yield encoding(lambda: go.wait(30)), go
    go.set()


@pytest.fixture
def steps(own: OwnWorker, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """When the LLM began each step of an answer that never ends by itself, 20 steps a second."""
    monkeypatch.setattr(own.worker.model.generation_config, "eos_token_id", -1)
    found: list[float] = []

    def note(*_: Any) -> None:
        found.append(time.monotonic())
        time.sleep(0.05)

    handle = own.worker.model.get_model().layers[0].register_forward_pre_hook(note)
    yield found
    handle.remove()


class TestSlow:
    def test_a_late_first_token_arrives(
        self, own: OwnWorker, encoding: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """LLaVA's streamer gives up after 15 s, here after 0.1 s; the model needs 1 s."""
        encoding(lambda: time.sleep(1))
        make = exam_stream.ExamAnswer.make_streamer
        monkeypatch.setattr(
            exam_stream.ExamAnswer, "make_streamer", lambda *args, **given: make(*args, **{**given, "timeout": 0.1})
        )
        messages = own.messages()
        silent = [message for message in messages if message["text"] == messages[0]["text"]]
        assert len(silent) >= 8
        assert messages[-1]["error_code"] == 0 and len(messages[-1]["text"]) > len(messages[0]["text"])
        assert messages[-1]["times"]["pictures"] > 1

    def test_something_is_sent_while_pictures_are_decoded(
        self, own: OwnWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load = ImageFile.ImageFile.load
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (time.sleep(0.05), load(self))[1])
        assert len(own.messages(frames=6)) >= 5

    def test_the_longest_silence_is_shorter_than_anybody_waits(self) -> None:
        assert worker.KEEP_ALIVE_SECONDS == exam_stream.KEEP_ALIVE_SECONDS <= 2


def test_a_picture_is_opened_once(own: OwnWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    open_picture = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **given: (opened.append(1), open_picture(*args, **given))[1])
    assert own.messages(frames=3)[-1]["error_code"] == 0
    assert len(opened) == 3


class TestQueue:
    def test_one_is_answered_the_next_wait_in_order_and_one_too_many_is_told(
        self, own: OwnWorker, held: tuple[list[int], threading.Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoded, go = held
        monkeypatch.setattr(own.waiting, "waiting", 2)
        answers = []
        for frames in (1, 2, 3):
            answers.append(own.ask(frames=frames))
            until(lambda: len(own.waiting) == len(answers))
        until(lambda: all("waiting" in answer.messages[-1] for answer in answers[1:] if answer.messages))
        until(lambda: all(len(answer.messages) > 3 for answer in answers))
        assert [answer.messages[-1].get("waiting") for answer in answers] == [None, 1, 2]
        refused = own.ask().last()
        assert refused["code"] == "busy" and refused["text"].startswith("busy, 2 waiting")
        status = requests.post(f"{own.address}/worker_get_status", timeout=2).json()
        assert status["queue_length"] == 3
        go.set()
        assert [answer.last()["error_code"] for answer in answers] == [0, 0, 0]
        assert encoded == [1, 2, 3]
        assert answers[2].last()["times"]["waiting"] > answers[1].last()["times"]["waiting"] > 0

    def test_who_stops_waiting_gives_the_place_up_and_is_never_computed(
        self, own: OwnWorker, held: tuple[list[int], threading.Event]
    ) -> None:
        encoded, go = held
        first, second, third = (own.ask(frames=frames) for frames in (1, 2, 3))
        until(lambda: len(own.waiting) == 3 and second.messages and third.messages)
        gc.disable()  # Starlette leaves a stream that nobody reads to the garbage collector
        try:
            second.hang_up()
            until(lambda: len(own.waiting) == 2, seconds=5)
        finally:
            gc.enable()
        go.set()
        assert first.last()["error_code"] == third.last()["error_code"] == 0
        assert encoded == [1, 3]

    def test_one_runs_on_a_cpu_whatever_llavas_flag_says(self, own: OwnWorker) -> None:
        assert (own.waiting.running, own.waiting.waiting) == (1, 16)


class TestGoneClient:
    def test_the_answer_stops_and_the_next_one_is_served(self, own: OwnWorker, steps: list[float]) -> None:
        first = own.ask(max_new_tokens=150, stop=NEVER)
        until(lambda: len(steps) > 3)
        first.hang_up()
        until(lambda: len(own.waiting) == 0, seconds=5)
        done = len(steps)
        time.sleep(0.3)
        assert len(steps) == done < 100
        assert own.ask(max_new_tokens=2).last()["error_code"] == 0

    def test_the_language_model_does_not_begin_once_the_frames_are_encoded(
        self, own: OwnWorker, held: tuple[list[int], threading.Event], steps: list[float]
    ) -> None:
        encoded, go = held
        stream = own.worker.generate_stream_gate(own.request())
        until(lambda: next(stream) and encoded)
        stream.close()
        assert len(own.waiting) == 1, "its place is not free while something is computed"
        go.set()
        until(lambda: len(own.waiting) == 0)
        assert steps == []

    def test_a_layer_of_the_encoder_is_the_most_that_is_computed(self, own: OwnWorker) -> None:
        [encoder, *_] = own.worker.model.get_vision_tower().encoders
        [layers] = [module for module in encoder.modules() if isinstance(module, torch.nn.ModuleList)]
        entered, go, ran = threading.Event(), threading.Event(), []
        handles = [
            layers[0].register_forward_pre_hook(lambda *_: (entered.set(), go.wait(30))[0]),
            layers[1].register_forward_pre_hook(lambda *_: ran.append(1)),
        ]
        try:
            stream = own.worker.generate_stream_gate(own.request())
            until(lambda: next(stream) and entered.is_set())
            stream.close()
            go.set()
            until(lambda: len(own.waiting) == 0)
        finally:
            for handle in handles:
                handle.remove()
        assert ran == []

    def test_generate_ends_with_a_stream_that_ends_early(
        self, own: OwnWorker, steps: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """LLaVA's git head stops reading at the stop word, and leaves the model running."""
        generate_stream = own.host.ModelWorker.generate_stream

        def first_text(self: Any, params: dict[str, Any]) -> Iterator[bytes]:
            yield next(generate_stream(self, params))

        monkeypatch.setattr(own.host.ModelWorker, "generate_stream", first_text)
        assert own.messages(max_new_tokens=150, stop=NEVER)[-1]["error_code"] == 0
        assert len(own.waiting) == 0 and len(steps) < 50
        assert "generate" not in [thread.name for thread in threading.enumerate()]


class TestErrors:
    def test_no_memory_for_tensors(self, own: OwnWorker, encoding: Callable[..., Any]) -> None:
        """A real refusal of torch's allocator, with a tensor in its frames that stands for what filled the memory."""
        held: list[Any] = []

        def allocate() -> None:
            if held:
                return
            ballast = torch.zeros(1_000_000)
            held.append(weakref.ref(ballast))
            torch.empty(2**50, dtype=torch.uint8)

        encoding(allocate)
        last = own.messages()[-1]
        assert last["error_code"] == 1 and last["code"] == "out_of_memory" and "Send fewer frames" in last["text"]
        assert held[0]() is None
        assert own.messages()[-1]["error_code"] == 0

    def test_no_memory_for_a_picture_then_the_next_request(
        self, own: OwnWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def load(self: Any) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(ImageFile.ImageFile, "load", load)
            assert own.messages()[-1]["code"] == "out_of_memory"
        assert own.messages()[-1]["error_code"] == 0

    @pytest.mark.parametrize("text", ["CUDA out of memory. Tried to allocate", "CUDA error: out of memory"])
    def test_what_cuda_says(self, text: str) -> None:
        kind = torch.cuda.OutOfMemoryError if "Tried" in text else RuntimeError
        assert exam_stream.explained(kind(text)).code == "out_of_memory"
        assert exam_stream.explained(RuntimeError("shapes do not fit")).code == "internal_error"

    def test_anything_else_is_named_by_its_type_and_quotes_nobody(
        self, own: OwnWorker, encoding: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail() -> None:
            raise KeyError(SECRET)

        encoding(fail)
        with caplog.at_level(logging.INFO):
            last = own.messages(prompt="<image>" * 3 + SECRET)[-1]
        assert last["code"] == "internal_error" and "(KeyError)" in last["text"] and "NETWORK" not in last["text"]
        assert "KeyError" in caplog.text and "in fail" in caplog.text and SECRET not in caplog.text + last["text"]

    def test_a_thread_that_cannot_start_leaves_its_place(self, own: OwnWorker, monkeypatch: pytest.MonkeyPatch) -> None:
        start = threading.Thread.start

        def refuse(self: threading.Thread) -> None:
            if self.name == "generate":
                raise RuntimeError("can't start new thread")
            start(self)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert own.messages()[-1]["code"] == "internal_error"
        assert len(own.waiting) == 0

    @pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"prompt": "a}'])
    def test_a_request_that_is_no_json_is_told_so(self, own: OwnWorker, body: bytes) -> None:
        answer = requests.post(f"{own.address}/worker_generate_stream", data=body, timeout=20)
        message = json.loads(answer.content[:-1])
        assert answer.status_code == 200 and message["code"] == "bad_request" and "no JSON" in message["text"]
        assert own.ask().last()["error_code"] == 0

    @pytest.mark.parametrize("announced", [True, False])
    def test_a_request_that_is_too_long_is_not_read(
        self, own: OwnWorker, announced: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exam_app, "body_bytes", lambda limits: 100_000)
        body = json.dumps(own.request(prompt="x" * 300_000)).encode()
        parts = body if announced else (body[start : start + 10_000] for start in range(0, len(body), 10_000))
        answer = requests.post(f"{own.address}/worker_generate_stream", data=parts, timeout=20)
        message = json.loads(answer.content[:-1])
        assert message["code"] == "request_too_large" and "More than 0 MiB" in message["text"]
        assert own.ask().last()["error_code"] == 0


class TestHeartBeat:
    def test_a_slow_controller_holds_up_nobody_and_hears_the_count(
        self, own: OwnWorker, held: tuple[list[int], threading.Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heard: list[int] = []

        class Controller(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                time.sleep(0.5)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                heard.append(body["queue_length"])
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"exist": true}')

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Controller)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            monkeypatch.setattr(own.worker, "controller_addr", f"http://127.0.0.1:{server.server_port}")
            monkeypatch.setattr(own.worker, "heart_beat_thread", "registered", raising=False)
            began = time.monotonic()
            own.worker.send_heart_beat()
            assert time.monotonic() - began < 0.4
            until(lambda: heard == [0])
            streams = [own.worker.generate_stream_gate(own.request()) for _ in range(2)]
            for stream in streams:
                assert next(stream) and next(stream), "the second message comes from the queue"
            until(lambda: heard[-1] == 2)
            held[1].set()
            assert [json.loads([*stream][-1][:-1])["error_code"] for stream in streams] == [0, 0]
            until(lambda: heard[-1] == 0)
        finally:
            monkeypatch.undo()
            server.shutdown()

    def test_a_controller_that_fails_once_is_told_again(self, own: OwnWorker, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[int] = []

        def beat() -> None:
            told.append(len(told))
            if len(told) == 1:
                raise ConnectionError

        monkeypatch.setattr(service, "AGAIN_S", 0.05)
        monkeypatch.setattr(own.worker, "heart_beat_thread", "registered", raising=False)
        monkeypatch.setattr(own.worker, "send_heart_beat", beat, raising=False)
        own.worker.exam_service.beat_soon()
        until(lambda: told == [0, 1])


def test_another_model_gets_llavas_own_functions() -> None:
    stock, host = type("ModelWorker", (), {"model": "stock"})(), type("Host", (), {})()
    assert list(worker.exam_stream_gate(lambda self, params: iter([params]), host)(stock, {"a": 1})) == [{"a": 1}]
    assert worker.exam_queue_length(lambda self: 7, host)(stock) == 7
    sent: list[Any] = []
    worker.exam_heart_beat(sent.append, host)(stock)
    assert sent == [stock]
    assert worker.exam_thread(lambda *args, **given: (args, given), host)(1, b=2) == ((1,), {"b": 2})
    assert worker.exam_streamer(lambda *args, **given: (args, given), host)(1, b=2) == ((1,), {"b": 2})
    assert worker.checked_picture(lambda image: image * 2, host)("base64") == "base64base64"
    assert vars(host) == vars(type("Host", (), {})())
