"""What OpenAI's clients may send, and what is said of the rest."""

from __future__ import annotations

import json
import logging

import pytest
from api_server import WORD, Running, chat_request, code_of, data_url, png, user_message
from fake_workers import FakeWorker, ours

from llava_ultra_ext.serve.openai_messages import ChatRequest, read_conversation
from llava_ultra_ext.serve.prompts import write_prompt

BAD = {
    "no JSON": (b"{", None),
    "half a surrogate": (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', None),
    "deep": (b"[" * 100_000, None),
    "list": ([], None),
    "no model": ({"messages": [user_message()]}, "model"),
    "model of another type": (chat_request(["m"]), "model"),
    "no messages": ({"model": "m", "messages": []}, "messages"),
    "number as text": ({"model": "m", "messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    "role": ({"model": "m", "messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    "part": ({"model": "m", "messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages.0.content.0.type"),
    "no address": (
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "messages.0.content.0.image_url",
    ),
    "temperature as text": (chat_request("m", temperature="0"), "temperature"),
    "temperature": (chat_request("m", temperature=2.5), "temperature"),
    "NaN": (chat_request("m", temperature=float("nan")), "temperature"),
    "truth as number": (chat_request("m", max_tokens=True), "max_tokens"),
    "no token": (chat_request("m", max_tokens=0), "max_tokens"),
    "two answers": (chat_request("m", n=2), "n"),
    "stream": (chat_request("m", stream="yes"), "stream"),
    "empty stop": (chat_request("m", stop=""), "stop.0"),
    "no question": ({"model": "m", "messages": [{"role": "system", "content": "x"}]}, "messages"),
    "answer last": (
        {"model": "m", "messages": [user_message(), {"role": "assistant", "content": "x"}]},
        "messages",
    ),
    "answer first": ({"model": "m", "messages": [{"role": "assistant", "content": "x"}, user_message()]}, "messages.0"),
    "pictures in two messages": (
        {
            "model": "m",
            "messages": [
                user_message("一", data_url(png())),
                {"role": "assistant", "content": "好"},
                user_message("二", data_url(png())),
            ],
        },
        "messages.2",
    ),
    "picture of the system": (
        {"model": "m", "messages": [{**user_message("一", data_url(png())), "role": "system"}, user_message()]},
        "messages.0",
    ),
    "too many messages": ({"model": "m", "messages": [user_message()] * 1025}, "messages"),
    "too many parts": (
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 1025}]},
        "messages.0.content",
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
    assert code_of(response) == "bad_request" and response.json()["error"]["param"] == param
    assert WORD not in response.text and not caplog.records


def test_a_conversation_is_read_as_turns() -> None:
    """Texts of one speaker in a row are one; a system text stands before the next question."""
    messages = [
        {"role": "system", "content": "简短。"},
        {"role": "user", "content": [{"type": "text", "text": "一"}, {"type": "text", "text": "二"}]},
        {"role": "assistant", "content": "甲"},
        {"role": "assistant", "content": "乙"},
        {"role": "user", "content": "三"},
        {"role": "developer", "content": "用中文。"},
        user_message("四", "data:a", "data:b"),
        {"role": "assistant", "content": "丙"},
        {"role": "user", "content": "五"},
    ]
    found = read_conversation(ChatRequest.parse(json.dumps({"model": "m", "messages": messages}).encode()).messages)
    assert found.turns == [("简短。\n一\n二", "甲\n乙"), ("三\n用中文。\n四", "丙"), ("五", None)]
    assert (found.addresses, found.images_turn) == (["data:a", "data:b"], 1)


def test_pictures_may_come_in_a_later_turn(api: Running, controller: str, model: str) -> None:
    messages = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "好"},
        user_message(WORD, data_url(png())),
    ]
    with FakeWorker(controller, model, ours("是")) as worker:
        api.openai().chat.completions.create(model=model, messages=messages)
    assert worker.asked[0]["prompt"] == write_prompt("ultra_v1_zh", (("你好", "好"), (WORD, None)), 1, images_turn=1)
