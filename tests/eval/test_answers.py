"""Answers files and the record beside them: what is continued, what is refused untouched, and who may write."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from eval_files import answer_line, write_lines

from llava_ultra_ext.eval.answers import AnswerFile
from llava_ultra_ext.eval.questions import Question
from llava_ultra_ext.eval.run_record import describe_run, record_path

ROW = json.dumps(answer_line(1, "肝"), ensure_ascii=False).encode()
ASKED = [Question(1, "问题1？"), Question(2, "问题2？")]


def left(path: Path, run: dict[str, Any] | None = None) -> list[int | str]:
    """Ids of the questions of `ASKED` that are not answered."""
    with AnswerFile(path, "llava-ultra", run) as answers:
        return [question.id for question in answers.unanswered(ASKED)]


@pytest.mark.parametrize(
    "content",
    [
        b'[{"question_id": 1, "text": "a"}]',
        b'[\n{"question_id": 1}\n]',
        b'{"question_id": 1, "text": "a"}',
        b'{"answers": [1, 2',
        b"thesis",
        ROW + b"\nthesis",
        ROW + b'\n{"text": "to',
        b'{"question_id": 1, "te\n' + ROW + b"\n",
        b"\xff\xfe",
    ],
)
def test_a_file_that_is_no_answers_file_is_refused_untouched(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: line [123] is no answer\. Needed, .* write to another file"):
        left(path)
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["mine.json"]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW.replace(b'", "text"', b'",\r"text"') + b"\r\n")
    before = path.read_bytes()
    assert b"\r" in before[:-2] and left(path) == [2] and path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 5, 14, 30, len(ROW) - 1])
def test_a_torn_row_is_cut_off_and_answered_again(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW + b"\n" + ROW.replace(b"1", b"2", 1)[:cut])
    assert left(path) == [2] and path.read_bytes() == ROW + b"\n"


def test_a_whole_last_row_without_line_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW)
    with AnswerFile(path, "llava-ultra") as answers:
        assert answers.unanswered(ASKED) == ASKED[1:]
        answers.write(ASKED[1], "肺", {})
    first, second = path.read_bytes().splitlines()
    assert first == ROW and json.loads(second)["text"] == "肺"


def test_who_does_not_hold_the_lock_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW + b"\n")
    with AnswerFile(path, "llava-ultra"):
        with path.open("ab") as file:
            file.write(b'{"question_id": 2, "pro')  # as the other one is writing it
        with pytest.raises(ValueError, match="another process is writing to it"):
            left(path)
        assert path.read_bytes().endswith(b'"pro')


@pytest.mark.parametrize(
    "row", [{**answer_line(1, "肝"), **change} for change in ({"question_id": ["a"]}, {"metadata": 5}, {"text": None})]
)
def test_rows_of_other_kinds_are_named(row: dict[str, Any], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [answer_line(2, "肺"), row])
    with pytest.raises(ValueError, match=r"line 2 is no answer\. Needed, .* metadata as an object"):
        left(path)


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AnswerFile(tmp_path / "a.jsonl", "llava-ultra") as answers:
        answers._file.close()
        answers._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 (the AnswerFile closes it)
        with pytest.raises(OSError, match=r"No space left on device: '.*a\.jsonl'") as caught:
            answers.write(ASKED[0], "肝", {})
    assert caught.value.errno == errno.ENOSPC


# --- the record of the run ---


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "one" / "llava-ultra"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "trainer_state.json"):
        (folder / name).write_text("{}")
    return folder


def run_of(model: Path, **changes: Any) -> dict[str, Any]:
    questions = write_lines(model.parents[1] / "q.jsonl", [changes.pop("question", "one")])
    settings = {"temperature": 0.0, "max_new_tokens": 40, **changes}
    return describe_run(str(model), None, questions, str(model.parent), settings)


def test_the_same_run_goes_on_without_a_word(tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    with AnswerFile(path, "llava-ultra", run_of(model)) as answers:
        answers.write(ASKED[0], "肝", {})
    (model / "answers.json").write_text("written beside the model")
    (model / "trainer_state.json").unlink()
    assert left(path, run_of(model)) == [2] and not caplog.records
    assert set(json.loads(path.read_text(encoding="utf-8"))) == set(answer_line(1, ""))  # LLaVA's keys, no others


def test_another_run_is_refused_with_what_differs(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "a.jsonl"
    with AnswerFile(path, "llava-ultra", run_of(model)) as answers:
        answers.write(ASKED[0], "肝", {})
    twin = tmp_path / "two" / "llava-ultra"
    twin.mkdir(parents=True)
    for other, said in (
        (run_of(twin), f"--model-path was {model}, is {twin}"),
        (run_of(model, temperature=0.7), "--temperature was 0.0, is 0.7"),
        (run_of(model, question="two"), "--question-file: the content changed"),
    ):
        with pytest.raises(ValueError, match=r"made by another run \(.*Write to another file") as caught:
            left(path, other)
        assert said in str(caught.value) and str(record_path(path)) in str(caught.value)
    os.utime(model / "model.safetensors", (1, 1))  # trained again, to files of the same size
    with pytest.raises(ValueError, match=r"--model-path: model\.safetensors changed"):
        left(path, run_of(model))
    record_path(path).unlink()
    assert left(path, run_of(model)) == [2]  # what the message advises
    assert left(path, run_of(model)) == [2]


def test_answers_without_a_record_are_continued_with_a_warning(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [answer_line(1, "肝")])
    with caplog.at_level(logging.WARNING):
        assert left(path, run_of(model)) == [2]
    assert f"{path}: has no a.jsonl.run.json beside it" in caplog.text


def test_a_record_without_answers_or_without_sense(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert left(path, run_of(model, temperature=1.0)) == [1, 2]
    assert left(path, run_of(model)) == [1, 2]  # nothing was answered yet
    write_lines(path, [answer_line(1, "肝")])
    record_path(path).write_text("[" * 100000)
    with pytest.raises(ValueError, match=r"a\.jsonl\.run\.json: is not what llava-ultra answer wrote"):
        left(path, run_of(model))
