"""Answers files: what is taken as it is, and every fault that stops a scoring, with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_files import answer_line, gold_line, write_lines

from llava_ultra_ext.eval.gold import Gold, read_gold
from llava_ultra_ext.eval.predictions import Answers, read_all


@pytest.fixture
def golds(tmp_path: Path) -> list[Gold]:
    english = {"question_id": 3, "text": "Which organ?", "answer": "Lung"}
    rows = [gold_line(1, "肺"), gold_line(2, "没有", answer_type="CLOSED"), english, gold_line(4, "CT")]
    return read_gold(write_lines(tmp_path / "gold.jsonl", rows))


GOOD = [answer_line(1, "肝"), answer_line(2, "有"), answer_line(3, "Liver"), answer_line(4, "MRI")]


def read(tmp_path: Path, golds: list[Gold], rows: list[Any], **options: Any) -> Answers:
    return read_all([write_lines(tmp_path / "answers.jsonl", rows)], golds, **options)[0]


def test_llavas_answers(tmp_path: Path, golds: list[Gold]) -> None:
    answers = read(tmp_path, golds, GOOD)
    assert answers.texts == {"1": "肝", "2": "有", "3": "Liver", "4": "MRI"}
    assert (answers.name, answers.file, answers.faults) == ("llava-ultra", "answers.jsonl", {})


def test_llava_meds_answers_carry_a_path_as_model_and_string_ids(tmp_path: Path, golds: list[Gold]) -> None:
    rows = [{**row, "question_id": str(row["question_id"]), "model_id": "/mnt/x/llava-med-7b/"} for row in GOOD]
    assert read(tmp_path, golds, rows).name == "llava-med-7b"


def test_answers_of_our_own_keep_what_is_known_of_frames(tmp_path: Path, golds: list[Gold]) -> None:
    said = {"frames": [[1]], "frame_scores": [[-0.4, 0.2]]}
    rows = [answer_line(1, "肝", metadata=said), *GOOD[1:]]
    assert read(tmp_path, golds, rows).metadata["1"] == said


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ([*GOOD, answer_line(9, "肝")], "unknown", "line 5: question 9 is not in the gold file"),
        (GOOD[:3], "missing", "gold line 4: question 4 has no answer"),
        ([*GOOD, answer_line(2, "没有")], "doubled", "line 5: question 2 is answered on line 2 already"),
        ([answer_line(1, " "), *GOOD[1:]], "empty", "line 1: the answer to question 1 is empty"),
        ([*GOOD, '{"question_id": 4, "te'], "cut", "line 5: was cut off"),
        ([answer_line(1, "Liver"), *GOOD[1:]], "language", "line 1: question 1 is zh, its answer is in another"),
        (
            [*GOOD[:3], answer_line(4, "MRI", "other")],
            "mixed_models",
            "line 4: is of model other, line 1 of llava-ultra;",
        ),
        ([*GOOD[:2], answer_line(3, "肝"), GOOD[3]], "language", "line 3: question 3 is en, its answer is in another"),
    ],
)
def test_each_fault_is_refused_with_its_line_or_counted(
    rows: list[Any], kind: str, message: str, tmp_path: Path, golds: list[Gold]
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, golds, rows)
    assert "--allow-missing" in str(caught.value)
    assert read(tmp_path, golds, rows, allow_missing=True).faults == {kind: 1}


def test_of_doubled_answers_the_first_counts(tmp_path: Path, golds: list[Gold]) -> None:
    assert read(tmp_path, golds, [*GOOD, answer_line(2, "没有")], allow_missing=True).texts["2"] == "有"


def test_abbreviations_are_at_home_in_both_languages(tmp_path: Path, golds: list[Gold]) -> None:
    for text in ("CT", "X-Ray", "T2", "5 mm", "2"):
        assert read(tmp_path, golds, [answer_line(1, text), *GOOD[1:]]).faults == {}


def test_all_faults_are_counted_and_ten_of_a_kind_listed(tmp_path: Path) -> None:
    golds = read_gold(write_lines(tmp_path / "gold.jsonl", [gold_line(number, "肺") for number in range(15)]))
    with pytest.raises(ValueError, match="14 questions without answer") as caught:
        read(tmp_path, golds, [answer_line(0, "肺")])
    assert str(caught.value).count("has no answer") == 10 and "and 4 more" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question_id": 1, "text": \n', "line 5 is not JSON"),  # a whole line: no interrupted writer left it
        ({"question_id": 1}, "line 5 is no answer"),
        ({"question_id": 1, "text": 3}, "line 5 is no answer"),
        ({"question_id": None, "text": "肺"}, "line 5: `question_id` must be"),
        ({"question_id": ["a"], "text": "肺"}, "line 5: `question_id` must be"),
        (f'{{"question_id": {"9" * 5000}}}\n', r"line 5 is not JSON \(a number has too many digits\)"),
        ([1], "line 5 is no answer"),
    ],
)
def test_what_is_no_answer_is_never_let_pass(row: Any, message: str, tmp_path: Path, golds: list[Gold]) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, golds, [*GOOD, row], allow_missing=True)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_gb18030_names_the_line(mark: str, tmp_path: Path, golds: list[Gold]) -> None:
    path = tmp_path / "answers.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in GOOD)
    path.write_bytes((mark + text).encode("gb18030"))
    with pytest.raises(ValueError, match=r"--pred .*iconv -f GB18030 .*line 1 "):
        read_all([path], golds, allow_missing=True)


def test_answers_to_questions_that_are_not_scored_are_passed_over(tmp_path: Path, golds: list[Gold]) -> None:
    chinese = [gold for gold in golds if gold.lang == "zh"]
    assert read(tmp_path, chinese, GOOD, others=frozenset({"3"})).faults == {}


def test_a_name_says_what_several_model_ids_are(tmp_path: Path, golds: list[Gold]) -> None:
    mixed = [*GOOD[:3], answer_line(4, "MRI", "/other/llava-ultra")]
    named = read(tmp_path, golds, mixed, names=["Ultra"])
    assert (named.name, named.faults) == ("Ultra", {})
    counted = read(tmp_path, golds, mixed, names=[""], allow_missing=True)
    assert (counted.name, counted.faults) == ("answers", {"mixed_models": 1})
    one = [{**GOOD[0], "model_id": "llava-ultra/"}, *GOOD[1:3], {**GOOD[3], "model_id": None}]
    assert read(tmp_path, golds, one).faults == {}


def test_names(tmp_path: Path, golds: list[Gold]) -> None:
    paths = [write_lines(tmp_path / name, GOOD) for name in ("a.jsonl", "b.jsonl")]
    assert [answers.name for answers in read_all(paths, golds)] == ["a", "b"]
    assert [answers.name for answers in read_all(paths, golds, names=["LLaVA", "Ultra"])] == ["LLaVA", "Ultra"]
    assert [answers.name for answers in read_all(paths, golds, names=["", "Ultra"])] == ["llava-ultra", "Ultra"]
    with pytest.raises(ValueError, match="1 names for 2 answers files"):
        read_all(paths, golds, names=["LLaVA"])
    with pytest.raises(ValueError, match="same name"):
        read_all([paths[0], paths[0]], golds)
