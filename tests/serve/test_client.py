"""The client at LLaVA's own controller, with workers that die, hang and are late, and with a real one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

import llava_servers
import pytest
import requests
from fake_workers import DIE, FakeWorker, ours, prompt_only, said, steps, stock
from llava_servers import Served

from llava_ultra_ext.serve.client import ControllerClient, Piece, Question
from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.prompts import TemplateChoice, write_prompt

SILENCE_S = 0.4
TURNS = (("请描述。", None),)


def _ask(controller: str, model: str, **changes: Any) -> list[Piece]:
    async def pieces() -> list[Piece]:
        async with ControllerClient(controller, silence_s=SILENCE_S) as client:
            return [piece async for piece in client.ask(Question(model, (), TURNS, **changes))]

    return asyncio.run(pieces())


def _refused(controller: str, model: str, **changes: Any) -> ServeError:
    with pytest.raises(ServeError) as refused:
        _ask(controller, model, **changes)
    return refused.value


def test_an_answer_grows_and_says_what_is_known_of_the_exam(controller: str, model: str) -> None:
    with FakeWorker(controller, model, ours("胆囊壁")) as worker:
        pieces = _ask(controller, model)
    assert [piece.text for piece in pieces] == ["", "胆", "胆囊", "胆囊壁", "胆囊壁", "胆囊壁"]
    assert [piece.waiting for piece in pieces] == [1, None, None, None, None, None]
    assert [piece.finish for piece in pieces] == [None] * 5 + ["stop"]
    assert pieces[1].chosen == (1,) and pieces[1].scores == (-0.5, -0.25) and pieces[1].alpha == 0.5
    assert pieces[-1].times["total"] == 0.2
    [asked] = worker.asked
    assert asked["prompt"] == write_prompt("ultra_v1_zh", TURNS, 0) and asked["stop"] == "</s>"
    assert "heat" not in asked


def test_the_question_reaches_the_worker(controller: str, model: str) -> None:
    templates = TemplateChoice.parse([f"ultra_chatml_zh={model}"])
    turns = (("图里有什么？", "胆囊。"), ("正常吗？", None))
    question = Question(model, (b"one", b"two"), turns, 0.0, 0.5, 7, heat=True)

    async def ask() -> None:
        async with ControllerClient(controller, templates) as client:
            async for _ in client.ask(question):
                pass

    with FakeWorker(controller, model, ours("是")) as worker:
        asyncio.run(ask())
    prompt = write_prompt("ultra_chatml_zh", turns, 2)
    assert worker.asked == [
        {
            "model": model,
            "prompt": prompt,
            "images": ["b25l", "dHdv"],
            "temperature": 0.0,
            "top_p": 0.5,
            "max_new_tokens": 7,
            "stop": "<|im_end|>",
            "heat": True,
        }
    ]


def test_a_dead_worker_is_replaced_before_its_first_text(controller: str, model: str) -> None:
    with (
        FakeWorker(controller, model, steps(prompt_only, DIE)) as dying,
        FakeWorker(controller, model, ours("另一台")) as other,
    ):
        assert _ask(controller, model)[-1].text == "另一台"
        assert len(dying.asked) == 1
        # The controller dropped it: nothing is tried there again.
        assert _ask(controller, model)[-1].text == "另一台"
    assert len(other.asked) == 2


def test_a_worker_that_nobody_listens_for_is_replaced(controller: str, model: str) -> None:
    with FakeWorker(controller, model, ours("没有")) as gone, FakeWorker(controller, model, ours("另一台")):
        gone.die()
        start = time.monotonic()
        assert [_ask(controller, model)[-1].text for _ in range(3)] == ["另一台"] * 3
        assert time.monotonic() - start < 5
    assert gone.asked == []


def test_the_controller_forgets_a_worker_that_is_gone(controller: str, model: str) -> None:
    """Nobody waits for that, and the next request finds the right one at once."""

    def listed() -> set[str]:
        return {llava_servers.post(f"{controller}/get_worker_address", {"model": model})["address"] for _ in range(8)}

    async def story() -> None:
        async with ControllerClient(controller) as client:
            assert listed() == {gone.address}
            async for _ in client.ask(Question(model, (), TURNS)):
                pass
            deadline = time.monotonic() + 10
            while listed() != {other.address}:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)

    with FakeWorker(controller, model, ours("没有")) as gone, FakeWorker(controller, model, ours("另一台")) as other:
        gone.die()
        # The controller sends a request to the worker with the shorter queue.
        other.status["queue_length"] = 99
        llava_servers.post(f"{controller}/receive_heart_beat", {"worker_name": other.address, "queue_length": 99})
        asyncio.run(story())


def test_a_death_in_the_middle_of_an_answer_is_told_at_once(controller: str, model: str) -> None:
    half = steps(prompt_only, lambda params: said(params, "胆囊"), 0.1, DIE)
    with FakeWorker(controller, model, half), FakeWorker(controller, model, ours("另一台")) as other:
        start = time.monotonic()
        assert _refused(controller, model).code == "worker_lost"
        assert time.monotonic() - start < 5
        assert other.asked == []
        assert _ask(controller, model)[-1].text == "另一台"


def test_silence_of_a_worker_of_ours_is_a_loss(controller: str, model: str) -> None:
    """Its status does not save it: it would have sent a keep-alive."""
    silent = steps(prompt_only, lambda params: said(params, "胆囊"), 30.0)
    with FakeWorker(controller, model, silent):
        start = time.monotonic()
        assert _refused(controller, model).code == "worker_lost"
        assert SILENCE_S <= time.monotonic() - start < 5


def test_a_worker_that_hangs_before_its_first_message_is_replaced(controller: str, model: str) -> None:
    with (
        FakeWorker(controller, model, steps(30.0), status_after_s=30) as hung,
        FakeWorker(controller, model, ours("另一台")),
    ):
        start = time.monotonic()
        assert _ask(controller, model)[-1].text == "另一台"
        assert time.monotonic() - start < 5
    assert len(hung.asked) == 1


def test_a_stock_worker_may_be_silent_for_longer(controller: str, model: str) -> None:
    with FakeWorker(controller, model, stock("慢慢说", wait_s=4 * SILENCE_S)) as worker:
        pieces = _ask(controller, model)
    assert pieces[-1].text == "慢慢说" and pieces[-1].finish == "stop"
    assert pieces[-1].chosen == () and pieces[-1].alpha is None and dict(pieces[-1].times) == {}
    assert sum(piece.text == "" for piece in pieces) >= 2, "the caller hears that it still works"
    assert len(worker.asked) == 1


def test_a_request_at_which_two_workers_died_spares_the_third(controller: str, model: str) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(FakeWorker(controller, model, steps(prompt_only, DIE))) for _ in range(3)]
        assert _refused(controller, model).code == "worker_lost"
        assert sum(len(worker.asked) for worker in workers) == 2


def test_a_restarted_worker_joins(controller: str, model: str) -> None:
    async def story() -> list[str]:
        async with ControllerClient(controller, silence_s=SILENCE_S) as client:
            question, found = Question(model, (), TURNS), []
            for _ in range(3):
                try:
                    found.append([piece async for piece in client.ask(question)][-1].text)
                except ServeError as error:
                    found.append(error.code)
                    stack.enter_context(FakeWorker(controller, model, ours("回来了")))
            return found

    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeWorker(controller, model, ours("没有"))).die()
        # The model was served before: the name is right, only its worker is missing.
        assert asyncio.run(story()) == ["no_worker", "回来了", "回来了"]


def test_no_exam_leaves_this_machine_for_a_worker_that_somebody_entered(controller: str, model: str) -> None:
    status = {"model_names": [model], "speed": 1, "queue_length": 0}
    entered = {"worker_name": "http://192.0.2.1:1", "check_heart_beat": False, "worker_status": status}
    requests.post(f"{controller}/register_worker", json=entered, timeout=10).raise_for_status()
    began = time.monotonic()
    assert _refused(controller, model).code == "no_worker"
    assert time.monotonic() - began < 1.5, "it tried to connect"
    with FakeWorker(controller, model, ours("胆囊壁")):
        assert _ask(controller, model)[-1].text == "胆囊壁"


def test_a_wrong_model_is_told_the_right_ones(controller: str, model: str) -> None:
    with FakeWorker(controller, model, ours("是")):
        error = _refused(controller, "<script>alert(1)</script>")
    assert error.code == "wrong_model"
    assert model in str(error) and "script" not in str(error)


def test_no_controller_is_said_at_once() -> None:
    [port] = llava_servers.free_ports(1)
    start = time.monotonic()
    error = _refused(f"http://127.0.0.1:{port}", "llava")
    assert error.code == "no_worker" and str(port) not in str(error)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        ({"text": "64 frames at most.", "error_code": 1, "code": "too_many_frames"}, "too_many_frames", "64 frames"),
        ({"text": "**NETWORK ERROR**", "error_code": 1}, "internal_error", "worker failed"),
        ({"text": "Secret text", "error_code": 1, "code": ["?"]}, "internal_error", "worker failed"),
        ({"text": "", "error_code": 0, "chosen_frames": 5}, "internal_error", "worker failed"),
    ],
)
def test_an_error_of_the_worker_keeps_its_code(
    controller: str, model: str, message: dict[str, Any], code: str, text: str
) -> None:
    with FakeWorker(controller, model, steps(prompt_only, message)):
        error = _refused(controller, model)
    assert error.code == code and text in str(error)


def test_a_stock_worker_that_refuses_a_long_prompt_is_understood(controller: str, model: str) -> None:
    refusal = "Exceeds max token length. Please start a new conversation, thanks."
    with FakeWorker(controller, model, steps(lambda params: {"text": params["prompt"] + refusal, "error_code": 0})):
        assert _refused(controller, model).code == "context_too_long"


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"text": 5, "error_code": 0}', "{}"])
def test_what_is_no_stream_of_llava_is_a_loss(controller: str, model: str, line: str) -> None:
    with FakeWorker(controller, model, steps(line)), FakeWorker(controller, model, steps(line)):
        assert _refused(controller, model).code == "worker_lost"


def test_an_answer_ends_before_a_stop_text_and_never_shows_a_part_of_it(controller: str, model: str) -> None:
    with FakeWorker(controller, model, ours("壁厚。结论：正常", wait_s=0.1)) as worker:
        pieces = _ask(controller, model, stop=("结论：", "没有"))
    assert pieces[-1].text == "壁厚。" and pieces[-1].finish == "stop"
    assert all("结" not in piece.text for piece in pieces)
    with FakeWorker(controller, f"{model}-2", ours("壁厚。结")):
        assert _ask(controller, f"{model}-2", stop=("结论：",))[-1].text == "壁厚。结", (
            "nothing is kept back at the end"
        )
    assert len(worker.asked) == 1


def test_the_templates_own_end_is_not_shown(controller: str, model: str) -> None:
    """A tokenizer without <|im_end|> spells it letter by letter; LLaVA removes it when it is whole."""
    text = "正常<|im_end|>"
    script = steps(*(lambda params, size=size: said(params, text[:size]) for size in range(1, len(text) + 1)))

    async def ask() -> list[str]:
        async with ControllerClient(controller, TemplateChoice("ultra_chatml_zh")) as client:
            return [piece.text async for piece in client.ask(Question(model, (), TURNS))]

    with FakeWorker(controller, model, script):
        assert set(asyncio.run(ask())) == {"正", "正常"}


def test_closing_the_iterator_hangs_up(controller: str, model: str) -> None:
    def endless(params: dict[str, Any]) -> Iterator[Any]:
        while True:
            yield said(params, "胆囊")
            yield 0.02

    async def leave() -> None:
        async with (
            ControllerClient(controller) as client,
            contextlib.aclosing(client.ask(Question(model, (), TURNS))) as pieces,
        ):
            await anext(pieces)

    with FakeWorker(controller, model, endless) as worker:
        asyncio.run(leave())
        assert worker.hung_up.wait(5)


def test_a_proxy_of_the_environment_is_not_asked(controller: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = llava_servers.free_ports(1)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    with FakeWorker(controller, model, ours("是")):
        assert _ask(controller, model)[-1].text == "是"


def test_a_real_worker_gives_the_client_what_it_gives_when_asked_directly(served: Served) -> None:
    images = sorted(served.trained.exams.glob("frames/*.png"))[:3]
    turns = (("请描述该胆囊超声图像。", None),)
    prompt = write_prompt("ultra_v1_zh", turns, len(images))
    question = Question(served.model, tuple(path.read_bytes() for path in images), turns, 0.0, max_new_tokens=16)

    async def ask() -> list[Piece]:
        async with ControllerClient(served.controller) as client:
            assert await client.models() == [served.model]
            assert await client.workers() == 1
            return [piece async for piece in client.ask(question)]

    pieces = asyncio.run(ask())
    direct = llava_servers.ask_worker(served.worker, prompt, images, max_new_tokens=16)
    assert pieces[-1].text == direct["text"].removeprefix(prompt).strip() != ""
    assert [list(pieces[-1].chosen)] == direct["chosen_frames"]
    assert [list(pieces[-1].scores)] == direct["frame_scores"] and len(pieces[-1].scores) == 3
    for one, next_one in itertools.pairwise(pieces):
        assert next_one.text.startswith(one.text)
