"""SLAKE: official split, languages, what is skipped and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from import_case import lines, picture, real, run_import, write_json


def question(qid: Any, **changes: Any) -> dict[str, Any]:
    return {
        "img_id": 1, "img_name": "xmlab1/source.jpg", "question": "这是什么检查？", "answer": "CT", "q_lang": "zh",
        "location": "Lung", "modality": "CT", "answer_type": "OPEN", "base_type": "vqa", "content_type": "Modality",
        "qid": qid, **changes,
    }  # fmt: skip


def test_real_counts(tmp_path: Path) -> None:
    card = run_import("slake", real("slake"), "--out", tmp_path / "out")
    train, validate = card["counts"]["train"], card["counts"]["validate"]
    # 4,919 English training questions, one of them with an empty answer.
    assert train["lang"] == {"zh": {"OPEN": 2978, "CLOSED": 1938}, "en": {"OPEN": 2975, "CLOSED": 1943}}
    assert validate["lang"] == {"zh": {"OPEN": 624, "CLOSED": 422}, "en": {"OPEN": 631, "CLOSED": 422}}
    assert train["modality"] == {"CT": 4818, "MRI": 2208, "X-Ray": 2808}
    assert validate["modality"] == {"CT": 955, "MRI": 478, "X-Ray": 666}
    assert card["records"] == {"read": 11934, "used": 11933, "skipped": 1, "left_out": {}}
    assert card["notes"] == {"questions_asked_again": 14}
    assert card["duplicates"]["pictures_in_several_splits"] == 130
    assert (train["pictures"], validate["pictures"], card["missing_pictures"]) == (586, 174, 630)
    assert lines(tmp_path / "out" / "skipped.jsonl") == [
        {"place": "train.json #1622", "id": 1622, "reason": "empty_answer"}
    ]


def test_one_language_leaves_the_other_out_and_counts_it(tmp_path: Path) -> None:
    card = run_import("slake", real("slake"), "--lang", "zh", "--out", tmp_path / "out")
    assert card["records"] == {"read": 11934, "used": 5962, "skipped": 0, "left_out": {"lang_en": 5972}}
    assert {row["lang"] for row in lines(tmp_path / "out" / "validate_gold.jsonl")} == {"zh"}


def test_records_of_a_made_up_folder(tmp_path: Path) -> None:
    picture(tmp_path / "slake" / "imgs" / "xmlab1" / "source.jpg", 90)
    write_json(tmp_path / "slake" / "test.json", [question(7, answer_type="CLOSED", answer="是")])
    card = run_import("slake", tmp_path / "slake", "--out", tmp_path / "out")
    assert lines(tmp_path / "out" / "test_questions.jsonl") == [
        {"question_id": 7, "image": "xmlab1/source.jpg", "text": "这是什么检查？"}
    ]
    assert lines(tmp_path / "out" / "test_gold.jsonl") == [
        {
            "question_id": 7, "image": "xmlab1/source.jpg", "text": "这是什么检查？", "answer": "是", "lang": "zh",
            "answer_type": "CLOSED", "modality": "CT", "content_type": "Modality", "site": "Lung",
            "exam_id": "xmlab1", "split": "test",
        }
    ]  # fmt: skip
    assert card["missing_pictures"] == 0 and not (tmp_path / "out" / "missing.jsonl").exists()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([question(1), question(1)], r"`qid` 1 stands at train.json #0 already"),
        ([question(1, q_lang="fr")], r"\(qid 1\): `q_lang` is 'fr'; allowed: zh, en"),
        ([question("1")], "`qid` is of type str"),
        ([question(1, question=None)], r"\(qid 1\): `question` is of type NoneType; must be a string"),
        ([question(1, answer="<image>")], "stands for a picture"),
        ([question(1, answer="\ud800")], "half a surrogate"),
        (["x"], "must be an object"),
        ([], "the list is empty"),
        ({"a": 1}, "a list of records is needed"),
        ([question(1, answer="")], "no question is left to write \\(empty_answer 1\\)"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, records: Any, message: str) -> None:
    (tmp_path / "train.json").write_text(__import__("json").dumps(records), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        run_import("slake", tmp_path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_encodings_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has none of train.json, validate.json, test.json"):
        run_import("slake", tmp_path, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match="does not exist"):
        run_import("slake", tmp_path / "no", "--out", tmp_path / "out")
    (tmp_path / "train.json").write_bytes('[{"question": "肝脏"}]'.encode("gb18030"))
    with pytest.raises(ValueError, match="iconv -f GB18030 -t UTF-8"):
        run_import("slake", tmp_path, "--out", tmp_path / "out")
    (tmp_path / "train.json").write_text('[{"qid": 1,]')
    with pytest.raises(ValueError, match="is not JSON"):
        run_import("slake", tmp_path, "--out", tmp_path / "out")
