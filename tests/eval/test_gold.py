"""Gold files: what is read, and every fault with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_files import gold_line, write_lines

from llava_ultra_ext.eval.gold import fingerprint, read_gold


def test_a_line_of_import(tmp_path: Path) -> None:
    row = gold_line(7, "结节", image=["a.png", "b.png"], lang="zh", answer_type="CLOSED", modality="CT", site="肺")
    row |= {"valid_frames": [1], "exam_id": "US-1", "content_type": "Organ", "split": "test"}
    (gold,) = read_gold(write_lines(tmp_path / "gold.jsonl", ["\n", row]))
    assert (gold.id, gold.line, gold.text, gold.answer) == ("7", 2, "问题7？", "结节")
    assert gold.images == ("a.png", "b.png") and gold.closed and gold.valid_frames == (1,) and gold.exam_id == "US-1"
    expected = {"lang": "zh", "answer_type": "CLOSED", "modality": "CT", "content_type": "Organ", "site": "肺"}
    assert gold.tags == {**expected, "split": "test"}


def test_what_a_line_leaves_out(tmp_path: Path) -> None:
    rows = [gold_line("a", "结节"), {"question_id": "b", "text": "What is it?", "answer": "Mass"}]
    chinese, english = read_gold(write_lines(tmp_path / "gold.jsonl", rows))
    assert (chinese.lang, english.lang) == ("zh", "en")
    assert not chinese.closed and english.images == () and english.tags["answer_type"] == "OPEN"


def test_numbers_are_kept_as_json_writes_them(tmp_path: Path) -> None:
    rows = [gold_line(1, 5, text="几枚？", lang="zh", exam_id=0), gold_line(2, 2.5, text="多大？", lang="zh", site=3)]
    first, second = read_gold(write_lines(tmp_path / "gold.jsonl", rows))
    assert (first.answer, first.exam_id, second.answer, second.tags["site"]) == ("5", "0", "2.5", "3")


def test_llava_meds_list(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Is it?\n<image>"}, {"from": "gpt", "value": "yes"}]
    entries = [
        {"id": 10, "image": "x.jpg", "conversations": turns, "answer_type": "CLOSED"},
        {"id": 11, "image": "x.jpg", "conversatons": turns, "answer_type": "OPEN"},
    ]
    path = tmp_path / "test.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    first, second = read_gold(path)
    assert (first.id, first.text, first.answer, first.closed) == ("10", "Is it?", "yes", True)
    assert (second.id, second.closed, second.lang) == ("11", False, "en")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([gold_line(1, "肺"), gold_line("1", "肝")], "line 2: `question_id` 1 stands on line 1 already"),
        ([gold_line(1, "肺"), {"question_id": 2, "text": "？"}], "line 2: has no `answer`"),
        ([gold_line(1, " ")], "line 1: `answer` must be a string that is not empty"),
        ([gold_line(1, "。")], "line 1: `answer` is empty or nothing but punctuation"),
        ([gold_line(1, "肺", answer_type="YESNO")], "line 1: `answer_type` is YESNO; must be OPEN or CLOSED"),
        ([gold_line(1, "肺", lang="fr")], "line 1: `lang` is fr; must be zh or en"),
        ([gold_line(1, "肺"), gold_line(2, "肺", lang="en")], "line 2: `lang` is en, but .* hold Chinese characters"),
        ([{"question_id": 1, "text": "Organ?", "answer": "Lung", "lang": "zh"}], "line 1: `lang` is zh, .* no Chinese"),
        ([gold_line(1.5, "肺")], "line 1: `question_id` must be a number or a string"),
        ([gold_line(1, ["肺"])], "line 1: `answer` must be a string"),
        ([[1]], "entry 1: a JSON int; must be an object"),
        ([gold_line(1, "肺"), 5], "line 2: a JSON int; must be an object"),
        ([gold_line(1, "肺", image=[1])], "line 1: `image` must be a file name"),
        ([gold_line(1, "肺", valid_frames="0")], "line 1: `valid_frames` must be a list"),
        ([gold_line(1, "肺"), '{"question_id": 2, "te'], "line 2 is not JSON"),
        ([gold_line(1, float("nan"))], "line 1: `answer` is nan, which JSON does not know"),
        ([gold_line(1, float("inf"))], "line 1: `answer` is inf"),
        ([gold_line(1, True)], "line 1: `answer` must be a string or a number, given is a JSON bool"),
        ([gold_line(1, "肺", site=float("nan"))], "line 1: `site` is nan"),
        ([gold_line(1, "肺", modality=["CT"])], "line 1: `modality` must be a string or a number"),
        ([gold_line(1, "肺", exam_id={})], "line 1: `exam_id` must be a string or a number"),
        (
            [gold_line(1, "肺"), f'{{"question_id": {"9" * 5000}}}'],
            r"line 2 is not JSON \(a number has too many digits",
        ),
        (["[" * 100000], r"is no list of questions \(nested too deeply\)"),
        ([f"[{'9' * 5000}]"], r"is no list of questions \(a number has too many digits\)"),
    ],
)
def test_each_fault_is_named_with_its_line(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_gold(write_lines(tmp_path / "gold.jsonl", rows))
    assert str(caught.value).startswith("--gold")


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["without mark", "with mark"])
def test_gb18030_is_named_with_line_and_advice(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in ({"question_id": 0}, gold_line(1, "结节"))]
    path.write_bytes((mark + "".join(lines)).encode("gb18030"))
    line = "line 1 begins with the byte order mark of GB18030" if mark else "line 2 is not UTF-8"
    with pytest.raises(ValueError, match=rf"iconv -f GB18030 -t UTF-8 .*{line}"):
        read_gold(path)


def test_a_utf8_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(gold_line(1, "肺")).encode() + b"\r\n")
    assert read_gold(path)[0].answer == "肺"


def test_the_fingerprint_ignores_the_order_and_nothing_else(tmp_path: Path) -> None:
    def of(*rows: dict[str, Any]) -> str:
        return fingerprint(read_gold(write_lines(tmp_path / "gold.jsonl", list(rows))))

    assert of(gold_line(1, "肺"), gold_line(2, "肝")) == of(gold_line(2, "肝"), gold_line(1, "肺"))
    assert of(gold_line(1, "肺")) != of(gold_line(1, "肝")) != of(gold_line(2, "肝"))


def test_lang_keeps_one_language(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "gold.jsonl", [gold_line(1, "肺"), {"question_id": 2, "text": "Q", "answer": "Lung"}])
    assert [gold.id for gold in read_gold(path, "en")] == ["2"]
    only = write_lines(tmp_path / "zh.jsonl", [gold_line(1, "肺")])
    with pytest.raises(ValueError, match=r"--lang en: no question .* It holds: zh"):
        read_gold(only, "en")
