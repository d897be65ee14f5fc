"""One record: what is read, what is refused and how it is said, and what happens when frames are left out."""

from __future__ import annotations

import pytest

from llava_ultra_ext.data.exam import BadSample, Exam, Turn

SECRET = "张三的结节"


def record(**changes):
    base = {
        "id": "US-1-diagnosis",
        "exam_id": "US-1",
        "image": ["a.png", "b.png", "c.png"],
        "site": "甲状腺",
        "modality": "ultrasound",
        "findings": " 低回声结节 ",
        "valid_frames": [2, 0],
        "conversations": [
            {"from": "human", "value": "<image>\n<image>\n<image>\n诊断?"},
            {"from": "gpt", "value": SECRET},
        ],
        "ward": 7,
    }
    base.update(changes)
    return {key: value for key, value in base.items() if value is not ...}


def talk(*texts, first="human"):
    order = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": order[index % 2], "value": text} for index, text in enumerate(texts)]


def test_a_full_record():
    exam = Exam.from_record(record())
    assert exam == Exam(
        id="US-1-diagnosis",
        exam_id="US-1",
        images=("a.png", "b.png", "c.png"),
        conversations=(Turn("human", "<image>\n<image>\n<image>\n诊断?"), Turn("gpt", SECRET)),
        findings="低回声结节",
        site="甲状腺",
        modality="ultrasound",
        valid_frames=(0, 2),
        extra={"ward": 7},
    )
    assert exam.score_key == "US-1"


def test_llavas_own_records():
    exam = Exam.from_record({"id": 17, "image": "a.png", "conversations": talk("<image>\nq", "a")})
    assert (exam.id, exam.images, exam.findings, exam.valid_frames, exam.score_key) == (
        "17",
        ("a.png",),
        "",
        None,
        "17",
    )
    text = Exam.from_record({"conversations": talk("q", "a")}, position=4)
    assert (text.id, text.images, text.groups) == ("#4", (), ())


def test_an_opening_answer_is_dropped_and_a_last_question_kept():
    exam = Exam.from_record({"id": "x", "conversations": talk("hello", "q", "a", "q2", first="gpt")})
    assert [turn.text for turn in exam.conversations] == ["q", "a", "q2"]


BAD = {
    "not_a_record": (["a"], "a JSON list, must be an object"),
    "image_type": (record(image=3), "`image` is of type int; must be a file name or a list of file names"),
    "image_type (null)": (record(image=None), "`image` is null; .* Leave the key out of a text-only sample"),
    "image_type (entries)": (record(image=[1, 2]), "`image` is a list with int entries"),
    "no_images": (record(image=[]), "`image` is an empty list; give at least one file name"),
    "no_conversation": (record(conversations=...), "`conversations` is missing; must be a list"),
    "no_conversation (empty)": (record(conversations=[]), "`conversations` is empty"),
    "no_conversation (type)": (record(conversations="hi"), "`conversations` is of type str"),
    "speaker": (record(conversations=[{"from": "patient", "value": SECRET}]), "turn 0 has no `from` of human or gpt"),
    "speaker (turn)": (record(conversations=["hi"]), "turn 0 has no `from`"),
    "empty_turn": (record(conversations=talk("q", " ")), "turn 1 has no text; `value` must be a non-empty string"),
    "empty_turn (type)": (record(conversations=talk("q", 5)), "turn 1 has no text"),
    "image_in_answer": (record(conversations=talk("q", "<image>")), "turn 1 is an answer with <image>; move it"),
    "no_answer": (record(conversations=talk("q")), "no gpt turn answers"),
    "no_answer (only gpt)": (record(conversations=talk("q", first="gpt")), "no gpt turn answers"),
    "turn_order": (
        record(conversations=talk("q", "a") + talk("b", first="gpt")),
        "two gpt turns in a row; .*alternate",
    ),
    "image_tokens (fewer)": (record(conversations=talk("<image>q", "a")), "3 pictures and 1 <image> tokens"),
    "image_tokens (more)": (record(image="a.png"), "1 pictures and 3 <image> tokens; .*Add or remove tokens"),
    "image_tokens (text only)": (record(image=..., valid_frames=...), "0 pictures and 3 <image> tokens"),
    "valid_frames_type": (record(valid_frames="0"), "`valid_frames` is of type str; must be a list of frame numbers"),
    "valid_frames_type (flags)": (record(valid_frames=[True, False]), "a list with bool entries"),
    "valid_frames_range": (record(valid_frames=[0, 3]), "holds 3, the exam has 3 frames; allowed are 0 to 2"),
    "valid_frames_range (negative)": (record(valid_frames=[-1]), "holds -1"),
    "findings_type": (record(findings=["x"]), "`findings` is a list with str entries; must be a string"),
    "site_type": (record(site=1), "`site` is of type int"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_records(case):
    given, message = BAD[case]
    with pytest.raises(BadSample, match=message) as caught:
        Exam.from_record(given, position=9)
    assert caught.value.reason == case.split(" ")[0]
    assert str(caught.value).startswith("sample US-1-diagnosis: " if isinstance(given, dict) else "sample #9: ")
    assert SECRET not in str(caught.value) and "a.png" not in str(caught.value)


def groups_exam():
    return Exam.from_record(
        {
            "id": "g",
            "image": list("abcdef"),
            "valid_frames": [1, 3, 5],
            "conversations": talk("左 <image> <image>右<image>", "a", "<image>\n<image>\n<image>\n比较", "b"),
        }
    )


def test_groups():
    assert groups_exam().groups == (range(0, 2), range(2, 3), range(3, 6))


def test_keep_frames():
    kept = groups_exam().keep_frames([5, 1, 2, 3])
    assert kept.images == ("b", "c", "d", "f")
    assert [turn.text for turn in kept.conversations] == ["左 <image>右<image>", "a", "<image>\n<image>\n比较", "b"]
    assert kept.valid_frames == (0, 2, 3)
    assert kept.groups == (range(0, 1), range(1, 2), range(2, 4))
    assert groups_exam().keep_frames(range(6)) == groups_exam()


@pytest.mark.parametrize("broken", ["\ud83d", "a\0b"])
@pytest.mark.parametrize("key", ["findings", "image", "answer"])
def test_text_that_no_tokenizer_takes(key: str, broken: str) -> None:
    turns = [{"from": "human", "value": "<image>\n问"}, {"from": "gpt", "value": broken if key == "answer" else "答"}]
    record = {"id": "1", "image": broken if key == "image" else "1.png", "conversations": turns}
    if key == "findings":
        record["findings"] = broken
    with pytest.raises(BadSample, match=r"holds NUL or half a surrogate pair|holds a character that is no text"):
        Exam.from_record(record)
