"""Question files: what is read, how it becomes a prompt, and every fault with its message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_ultra_ext.eval.questions import Question, chunk, read_questions


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """`a.png` to `c.png`, an empty file, a cut one and a DICOM file."""
    for name in "abc":
        Image.effect_noise((40, 30), 50).save(tmp_path / f"{name}.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:700])
    (tmp_path / "scan.png").write_bytes(bytes(128) + b"DICM" + bytes(100))
    return tmp_path


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_reads_exams_single_pictures_text_and_gold_lines(pictures: Path) -> None:
    path = write(
        pictures,
        {"question_id": 0, "image": "a.png", "text": "一\u2028二"},
        "",
        {
            "question_id": "g",
            "image": ["a.png", "b.png"],
            "text": "二",
            "answer": "x",
            "valid_frames": [1],
            "lang": "zh",
        },
        {"question_id": 2, "text": "三"},
    )
    assert read_questions(path, str(pictures)) == [
        Question(0, "一\u2028二", ("a.png",)),
        Question("g", "二", ("a.png", "b.png"), (1,)),
        Question(2, "三"),
    ]


@pytest.mark.parametrize(
    ("question", "prompt"),
    [
        (Question(1, "诊断？", ("a",)), "<image>\n诊断？"),
        (Question(1, "诊断？", ("a", "b", "c")), "<image>\n<image>\n<image>\n诊断？"),
        (Question(1, "<image>这是什么？", ("a",)), "<image>\n这是什么？"),
        (Question(1, "左：<image>右：<image>哪侧？", ("a", "b")), "左：<image>\n右：<image>\n哪侧？"),
        (Question(1, "需要空腹吗？"), "需要空腹吗？"),
    ],
)
def test_pictures_stand_where_training_puts_them(question: Question, prompt: str) -> None:
    assert question.prompt_text == prompt


GOOD = {"question_id": 1, "image": "a.png", "text": "诊断？"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['[{"question_id": 1, "text": "x"}]'], r"holds a JSON list; JSON lines are needed.*python -c"),
        ([GOOD, '{"question_id": 2,'], "line 2 is not JSON"),
        ([""], "is empty; at least one question"),
        ([[1]], r"line 1: a JSON list|holds a JSON list"),
        ([GOOD, 5], "line 2: a JSON int; must be an object"),
        ([{"image": "a.png"}], "line 1: has no `question_id` and no `text`"),
        ([{**GOOD, "question_id": 1.5}], "line 1: `question_id` must be a number or a string"),
        ([GOOD, {**GOOD, "text": "y"}], "line 2: `question_id` 1 stands on line 1 already"),
        ([{**GOOD, "text": " "}], "line 1: `text` must be a string that is not empty"),
        ([{**GOOD, "image": []}], "line 1: `image` is an empty list"),
        ([{**GOOD, "image": [1]}], "line 1: `image` must be a file name or a list"),
        ([{**GOOD, "image": "a\0.png"}], r"line 1: `image` holds a character that no file name has \(NUL or half"),
        ([{**GOOD, "image": ["a.png", "\ud83d.png"]}], "line 1: `image` holds a character that no file name has"),
        ([{**GOOD, "text": "\ud83d"}], "line 1: `text` holds a character that is no text"),
        ([f'{{"question_id": {"9" * 5000}}}'], r"line 1 is not JSON \(a number has too many digits\)"),
        ([{**GOOD, "text": "<image><image>"}], "line 1: 1 pictures and 2 <image> tokens"),
        ([{**GOOD, "valid_frames": [1]}], "line 1: `valid_frames` must be a list of frame numbers, 0 to 0"),
        ([GOOD, {**GOOD, "question_id": 2, "image": ["a.png", "no.png"]}], "line 2: picture 2 of 2 does not exist"),
        ([{**GOOD, "image": "empty.png"}], r"line 1: picture 1 of 1 is an empty file \(0 bytes\)"),
        ([{**GOOD, "image": "cut.png"}], "line 1: picture 1 of 1 is damaged or cut off"),
        ([{**GOOD, "image": "scan.png"}], "line 1: picture 1 of 1 is a DICOM file"),
        ([{**GOOD, "image": "../a.png"}], "line 1: picture 1 of 1 lies outside --image-folder"),
    ],
)
def test_each_fault_is_named_with_its_line(rows: list[Any], message: str, pictures: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_questions(write(pictures, *rows), str(pictures))
    assert str(caught.value).startswith("--question-file")


def test_all_faults_are_counted_and_the_first_ten_listed(pictures: Path) -> None:
    rows = [{"question_id": number, "text": "x", "image": "no.png"} for number in range(14)]
    with pytest.raises(ValueError, match="14 faults") as caught:
        read_questions(write(pictures, *rows), str(pictures))
    assert str(caught.value).count("does not exist") == 10 and "and 4 more" in str(caught.value)


def test_a_file_that_is_not_utf8_or_absent(pictures: Path) -> None:
    (pictures / "gbk.jsonl").write_bytes(json.dumps({"text": "诊断"}, ensure_ascii=False).encode("gbk"))
    with pytest.raises(ValueError, match=r"is not UTF-8. Convert it.*iconv"):
        read_questions(pictures / "gbk.jsonl")
    with pytest.raises(ValueError, match="cannot be read"):
        read_questions(pictures / "absent.jsonl")


@pytest.mark.parametrize(("total", "count"), [(10, 3), (7, 7), (1, 1), (35, 4)])
def test_chunks_are_llavas(total: int, count: int) -> None:
    model_vqa = pytest.importorskip("llava.eval.model_vqa")
    questions = [Question(number, "x") for number in range(total)]
    for index in range(count):
        assert chunk(questions, count, index) == model_vqa.get_chunk(questions, count, index)


def test_a_chunk_may_be_empty_where_llava_fails() -> None:
    questions = [Question(number, "x") for number in range(5)]
    assert [len(chunk(questions, 4, index)) for index in range(4)] == [2, 2, 1, 0]
