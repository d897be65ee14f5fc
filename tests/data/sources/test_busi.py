"""BUSI: classes, masks, and pictures that are equal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from import_case import lines, picture, real, run_import

from llava_ultra_ext.data.sources.busi import QUESTIONS


def test_real_counts(tmp_path: Path) -> None:
    card = run_import("busi", real("busi"), "--lang", "zh", "--out", tmp_path / "out")
    counts = card["counts"]
    totals = Counter()
    for split in counts.values():
        totals.update(split["content_type"])
    assert totals == {"benign": 292, "malignant": 140, "normal": 89}
    assert {split: found["studies"] for split, found in counts.items()} == {"train": 416, "validate": 50, "test": 55}
    assert card["duplicates"] == {
        "equal_pictures": 0, "pictures_in_several_splits": 0, "across_splits": 0, "conflicts": 0,
        "exams_across_splits": 0,
    }  # fmt: skip
    assert card["missing_pictures"] == 0


def test_questions_in_both_languages_and_masks(tmp_path: Path) -> None:
    picture(tmp_path / "busi" / "benign" / "001.png", 10)
    picture(tmp_path / "busi" / "benign" / "001_mask.png", 255)
    picture(tmp_path / "busi" / "normal" / "1.jpeg", 20)
    (tmp_path / "busi" / "normal" / "note.txt").write_text("x")
    card = run_import("busi", tmp_path / "busi", "--split", "0,0,1", "--out", tmp_path / "out")
    assert card["records"] == {"read": 4, "used": 2, "skipped": 0, "left_out": {"mask_files": 1, "other_files": 1}}
    rows = lines(tmp_path / "out" / "test_gold.jsonl")
    assert [(row["question_id"], row["answer"], row["content_type"]) for row in rows] == [
        ("busi-benign-001-zh", "良性", "benign"),
        ("busi-benign-001-en", "benign", "benign"),
        ("busi-normal-1-zh", "正常", "normal"),
        ("busi-normal-1-en", "normal", "normal"),
    ]
    assert {row["text"] for row in rows} == set(QUESTIONS.values())
    assert {(row["answer_type"], row["site"], row["modality"]) for row in rows} == {("CLOSED", "乳腺", "ultrasound")}


def test_equal_pictures_stay_in_one_split_and_conflicts_are_told(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / "busi" / "benign" / f"{number}.png", number)
        picture(tmp_path / "busi" / "malignant" / f"{number}.png", number, compress_level=0)  # other bytes, same pixels
    card = run_import("busi", tmp_path / "busi", "--lang", "en", "--split", "0.5,0.2,0.3", "--out", tmp_path / "out")
    assert card["duplicates"] == {
        "equal_pictures": 40, "pictures_in_several_splits": 0, "across_splits": 0, "conflicts": 40,
        "exams_across_splits": 0,
    }  # fmt: skip
    assert len(card["counts"]) == 3
    row = lines(tmp_path / "out" / "duplicates.jsonl")[0]
    assert row["labels"] == ["benign", "malignant"]
    assert [entry["image"] for entry in row["pictures"]] == ["benign/0.png", "malignant/0.png"]


def test_refused_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the folders benign, malignant, normal"):
        run_import("busi", tmp_path, "--out", tmp_path / "out")
    picture(tmp_path / "benign" / "1.png", 1)
    picture(tmp_path / "benign" / "1.jpg", 1)
    with pytest.raises(ValueError, match="differ in their ending only"):
        run_import("busi", tmp_path, "--out", tmp_path / "out")


def test_links_to_what_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "busi"
    picture(folder / "benign" / "1.png", 1)
    (folder / "benign" / "2.png").symlink_to("elsewhere.png")
    card = run_import("busi", folder, "--lang", "en", "--split", "0,0,1", "--out", tmp_path / "out")
    assert card["records"]["read"] == 2 and card["missing_pictures"] == 1
    assert lines(tmp_path / "out" / "missing.jsonl") == [
        {"image": "benign/2.png", "reason": "missing_picture", "ids": ["busi-benign-2-en"]}
    ]
    (folder / "normal").symlink_to("elsewhere")
    with pytest.raises(ValueError, match="normal is a link to a folder that is gone"):
        run_import("busi", folder, "--out", tmp_path / "out")


def test_a_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    made = picture(tmp_path / "busi" / "benign" / "a.png", 1)
    made.rename(made.with_name("a\udcff.png"))
    with pytest.raises(ValueError, match=r"'a\\udcff\.png' in benign is no UTF-8 name\. Rename the file"):
        run_import("busi", tmp_path / "busi", "--out", tmp_path / "out")
