"""LLaVA's own controller and worker, unedited, asked about exams over HTTP: what the stream says, and every refusal."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import requests
import torch
from llava_servers import Served, post
from test_limits import png_header

PROMPT = "用户: {}请描述。 助手:"


def ask(
    served: Served, pictures: list[bytes], through_controller: bool = False, **changes: Any
) -> list[dict[str, Any]]:
    request = {
        "model": served.model,
        "prompt": PROMPT.format("<image>\n" * len(pictures)),
        "images": [base64.b64encode(data).decode() for data in pictures],
        "temperature": 0,
        "max_new_tokens": 6,
        "stop": "</s>",
        **changes,
    }
    address = served.controller if through_controller else served.worker
    with requests.post(f"{address}/worker_generate_stream", json=request, stream=True, timeout=60) as response:
        assert response.status_code == 200
        return [json.loads(line) for line in response.iter_lines(delimiter=b"\0") if line]


@pytest.fixture(scope="module")
def frames(served: Served) -> list[bytes]:
    """An exam of four."""
    found = [path.read_bytes() for path in sorted(served.trained.exams.glob("frames/*0004*.png"))]
    assert len(found) == 4
    return found


@pytest.mark.parametrize("through_controller", [False, True])
def test_the_stream_says_what_is_known_of_the_exam(
    served: Served, frames: list[bytes], through_controller: bool
) -> None:
    messages = ask(served, frames, through_controller)
    last = messages[-1]
    assert last["error_code"] == 0 and last["text"].startswith(PROMPT.format("<image>\n" * 4))
    [scores], [chosen] = last["frame_scores"], last["chosen_frames"]
    assert len(scores) == 4 and chosen == [scores.index(max(scores))]
    learnt = torch.load(served.trained.lora / "non_lora_trainables.bin", weights_only=True)
    [logit] = [value for name, value in learnt.items() if name.endswith("fusion.logits")]
    assert last["alpha"] == pytest.approx(logit.sigmoid().item(), abs=1e-6) and last["alpha"] != 0.5
    times = last["times"]
    assert 0 <= times["waiting"] < 5
    assert 0 < times["pictures"] <= times["first_token"] <= times["total"] < 60
    assert "heat" not in last and "waiting" not in last
    with_text = [message for message in messages if len(message["text"]) > len(messages[0]["text"])]
    assert with_text and all("chosen_frames" in message for message in with_text)


def test_the_end_says_why_and_how_many_tokens_there_were(served: Served, frames: list[bytes]) -> None:
    from llava.mm_utils import tokenizer_image_token
    from transformers import AutoTokenizer

    one, four, long = (
        ask(served, exam, max_new_tokens=most, heat=True)[-1]
        for exam, most in ((frames[:1], 2), (frames, 2), (frames, 200))
    )
    tokenizer = AutoTokenizer.from_pretrained(served.trained.base, use_fast=False)
    rows, columns = one["heat"][0]["grid"]
    text = len(tokenizer_image_token(PROMPT.format("<image>\n"), tokenizer)) - 1
    assert one["tokens"] == four["tokens"] == {"prompt": text + rows * columns, "answer": 2}
    assert one["finish_reason"] == four["finish_reason"] == "length"
    assert long["finish_reason"] == "stop" and 2 < long["tokens"]["answer"] < 200


def test_several_exams_in_a_prompt_have_a_choice_each(served: Served, frames: list[bytes]) -> None:
    prompt = "用户: <image>\n<image>\n左侧。<image>\n<image>\n<image>\n右侧，请比较。 助手:"
    last = ask(served, [*frames, frames[0]], prompt=prompt, heat=True)[-1]
    assert [len(scores) for scores in last["frame_scores"]] == [2, 3]
    assert [part["frame"] for part in last["heat"]] == [chosen for [chosen] in last["chosen_frames"]]


def test_a_text_question_has_no_exam(served: Served) -> None:
    last = ask(served, [])[-1]
    assert last["error_code"] == 0 and set(last["times"]) == {"waiting", "first_token", "total"}
    assert not {"chosen_frames", "frame_scores", "alpha", "heat"} & set(last)


def test_heat_is_where_the_score_comes_from(served: Served, frames: list[bytes]) -> None:
    messages = ask(served, frames, heat=True)
    last = messages[-1]
    [part], [scores], [[chosen]] = last["heat"], last["frame_scores"], last["chosen_frames"]
    assert part["frame"] == chosen and part["grid"] == [4, 4] and len(part["scores"]) == 16
    assert len(set(part["scores"])) > 8
    assert sum(part["scores"]) == pytest.approx(scores[chosen] - sum(scores) / 4, abs=1e-4)
    assert scores == ask(served, frames)[-1]["frame_scores"][0]


@pytest.mark.parametrize(
    ("count", "changes", "code", "text"),
    [
        (1, {"model": "other"}, "wrong_model", "This worker serves llava-ultra-tiny-lora, not other."),
        (65, {}, "too_many_frames", "65 frames were sent, 64 are allowed"),
        (3, {"prompt": "<image><image>?"}, "frames_mismatch", "3 images but 2 <image> in the prompt."),
        (1, {"images": ["%"]}, "bad_picture", "Picture 1 is not base64"),
        (0, {"prompt": None}, "bad_request", "`prompt` must be a text"),
        (
            1,
            {"prompt": "<image>\n" + "请描述该图像。" * 300},
            "context_too_long",
            "and this model reads 256, the answer",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_refusal_has_its_code(
    served: Served, frames: list[bytes], count: int, changes: dict[str, Any], code: str, text: str
) -> None:
    last = ask(served, (frames * 20)[:count], **changes)[-1]
    assert last["error_code"] == 1 and last["code"] == code and text in last["text"]


@pytest.mark.parametrize("through_controller", [False, True])
def test_a_bomb_is_refused_by_its_header(served: Served, through_controller: bool) -> None:
    last = ask(served, [png_header(30_000, 30_000)], through_controller)[-1]
    assert last["code"] == "picture_too_large" and "16,777,216 pixels" in last["text"]


def test_a_cut_picture_is_named(served: Served, frames: list[bytes]) -> None:
    last = ask(served, [frames[0], frames[1][: len(frames[1]) // 2]])[-1]
    assert last["code"] == "bad_picture" and "Picture 2 is damaged or cut off" in last["text"]


@pytest.mark.parametrize("stop", [None, ""])
def test_without_a_stop_word_the_models_own_end_counts(served: Served, frames: list[bytes], stop: str | None) -> None:
    """LLaVA's function fails on the one, and takes the whole text away for the other."""
    assert ask(served, frames, stop=stop)[-1]["text"] == ask(served, frames)[-1]["text"]


def test_after_all_this_nobody_is_left_in_the_queue(served: Served, frames: list[bytes]) -> None:
    assert ask(served, frames)[-1]["error_code"] == 0
    assert post(f"{served.worker}/worker_get_status") == {
        "model_names": [served.model],
        "speed": 1,
        "queue_length": 0,
    }
