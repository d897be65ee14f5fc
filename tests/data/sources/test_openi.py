"""OpenI-zh: studies, their one text, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from import_case import lines, picture, real, run_import, write_json

from llava_ultra_ext.data.sources.openi import QUESTION, QUESTIONS, ends_chatty, train_question


def test_real_counts(tmp_path: Path) -> None:
    card = run_import("openi", real("openi-zh"), "--out", tmp_path / "out")
    counts = card["counts"]
    assert card["records"] == {"read": 6423, "used": 6423, "skipped": 0, "left_out": {}}
    assert sum(split["studies"] for split in counts.values()) == 3313
    assert sum(split["pictures"] for split in counts.values()) == 6423
    assert {split: found["studies"] for split, found in counts.items()} == {"train": 2680, "validate": 308, "test": 325}
    assert {split: found["content_type"]["normal"] for split, found in counts.items()} == {
        "train": 1041,
        "validate": 129,
        "test": 121,
    }
    assert card["notes"]["studies_with_different_texts"] == 332
    assert card["notes"]["captions_with_mask_artefact"] == 2
    assert card["missing_pictures"] == 6418
    assert card["split_hash"] == "b12e5b7b9d46f817"


def captions(**texts: str) -> list[dict[str, str]]:
    return [{"image_id": name.lstrip("s"), "caption": text} for name, text in texts.items()]


def test_a_study_is_one_exam_with_its_most_frequent_text(tmp_path: Path) -> None:
    records = captions(s9_10="丙。", s9_2="乙。", s9_1="甲。", s9_3="乙。", s4_2="戊。", s4_1="丁。")
    write_json(tmp_path / "openi-zh.json", {"annotations": records})
    picture(tmp_path / "9_3.jpg", 5)
    card = run_import("openi", tmp_path, "--split", "0,0,1", "--out", tmp_path / "out")
    nine, four = lines(tmp_path / "out" / "test_gold.jsonl")
    assert nine["image"] == ["9_1.png", "9_2.png", "9_3.jpg", "9_10.png"]  # by number, not by letter
    assert (nine["answer"], nine["other_answers"]) == ("乙。", ["甲。", "丙。"])
    assert (four["answer"], four["other_answers"]) == ("丁。", ["戊。"])  # a tie: the first picture's
    assert nine["text"] == four["text"] == QUESTION
    assert card["notes"]["studies_with_different_texts"] == 2
    record = json.loads((tmp_path / "out" / "test.json").read_text(encoding="utf-8"))[0]
    assert record["conversations"][0]["value"] == "<image>\n" * 4 + QUESTION
    assert record["findings"] == "乙。" and record["other_findings"] == ["甲。", "丙。"]
    assert [row["image"] for row in lines(tmp_path / "out" / "missing.jsonl")] == [
        "9_1.png", "9_2.png", "9_10.png", "4_1.png", "4_2.png",
    ]  # fmt: skip


def test_training_questions_vary_by_study_and_a_bare_list_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "openi-zh.json", captions(**{f"s{study}_1": "两肺清晰。" for study in range(60)}))
    run_import("openi", tmp_path, "--split", "1,0,0", "--out", tmp_path / "out")
    rows = lines(tmp_path / "out" / "train_questions.jsonl")
    assert {row["text"] for row in rows} == set(QUESTIONS)
    assert rows[3]["text"] == train_question("3")


def test_an_empty_caption_is_listed(tmp_path: Path) -> None:
    write_json(tmp_path / "openi-zh.json", captions(s1_1="两肺清晰。", s1_2=" "))
    card = run_import("openi", tmp_path, "--out", tmp_path / "out")
    assert card["records"] == {"read": 2, "used": 1, "skipped": 1, "left_out": {}}
    assert lines(tmp_path / "out" / "skipped.jsonl") == [
        {"place": "openi-zh.json #1", "id": "1_2", "reason": "empty_caption"}
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"images": []}, "has no `annotations`"),
        ({"annotations": []}, "the list is empty"),
        ([{"image_id": "162", "caption": "甲"}], r"#0: `image_id` '162' is not study_number"),
        ([{"image_id": "a_b", "caption": "甲"}], "is not study_number"),
        ([{"image_id": 162, "caption": "甲"}], "`image_id` is of type int"),
        ([{"image_id": "1_1", "caption": ["甲"]}], "`caption` is of type list"),
        (captions(s1_1="甲") * 2, r"#1: `image_id` 1_1 stands at #0 already"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, data: Any, message: str) -> None:
    write_json(tmp_path / "openi-zh.json", data)
    with pytest.raises(ValueError, match=message):
        run_import("openi", tmp_path, "--out", tmp_path / "out")


def test_other_languages_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--lang en: OpenI-zh is Chinese only"):
        run_import("openi", tmp_path, "--lang", "en", "--out", tmp_path / "out")
    with pytest.raises(ValueError, match=r"openi-zh.json: cannot be read"):
        run_import("openi", tmp_path, "--out", tmp_path / "out")


def test_chatty_endings() -> None:
    assert ends_chatty("两肺清晰。你有什么问题吗？")
    assert ends_chatty("右肺有结节。建议进一步检查。")
    assert not ends_chatty("建议复查后再看。两肺清晰。")
