"""Hospital manifests: questions from conversations and reports, both cue versions, splits, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from import_case import lines, run_import, write_json

from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.eval.gold import read_gold

REPORT = {
    "id": "US-1", "image": ["US-1/1.png", "US-1/2.png"], "site": "甲状腺", "modality": "ultrasound",
    "findings": "甲状腺右叶见低回声结节。", "diagnosis": "右叶结节。", "valid_frames": [1],
}  # fmt: skip


def talk(sample: str, *texts: str, **keys: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]
    return {"id": sample, "image": "a.png", "conversations": turns, **keys}


def imported(tmp_path: Path, records: Any, *flags: str) -> tuple[dict[str, Any], Path]:
    write_json(tmp_path / "exams.json", records)
    return run_import("exams", tmp_path / "exams.json", "--out", tmp_path / "out", *flags), tmp_path / "out"


def gold(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["question_id"]: row for path in sorted(folder.glob("*_gold.jsonl")) for row in lines(path)}


def test_a_report_becomes_a_findings_and_a_diagnosis_question(tmp_path: Path) -> None:
    _, out = imported(tmp_path, [REPORT], "--split", "0,0,1")
    assert list(gold(out).values()) == [
        {
            "question_id": "US-1-q1", "image": ["US-1/1.png", "US-1/2.png"], "text": "请描述该甲状腺超声图像的所见。",
            "answer": "甲状腺右叶见低回声结节。", "lang": "zh", "answer_type": "OPEN", "modality": "ultrasound",
            "site": "甲状腺", "exam_id": "US-1", "valid_frames": [1], "split": "test",
        },
        {
            "question_id": "US-1-q2", "image": ["US-1/1.png", "US-1/2.png"], "text": "请给出该甲状腺超声图像的诊断。",
            "answer": "右叶结节。", "lang": "zh", "answer_type": "OPEN", "modality": "ultrasound",
            "site": "甲状腺", "exam_id": "US-1", "valid_frames": [1], "split": "test",
        },
    ]  # fmt: skip
    records = json.loads((out / "test.json").read_text(encoding="utf-8"))
    assert records[1]["conversations"][0]["value"] == "<image>\n<image>\n请给出该甲状腺超声图像的诊断。"
    exam = Exam.from_record(records[1])
    assert exam.findings == "甲状腺右叶见低回声结节。" and exam.valid_frames == (1,)


def test_records_without_an_id_are_named_by_their_exam(tmp_path: Path) -> None:
    records = [{"exam_id": exam, "image": "a.png", "diagnosis": "结节。"} for exam in ("US-1", "US-2", "US-1")]
    _, out = imported(tmp_path, records, "--split", "0,0,1")
    assert sorted(gold(out)) == ["US-1-2-q1", "US-1-q1", "US-2-q1"]


def test_english_reports_get_english_questions(tmp_path: Path) -> None:
    _, out = imported(tmp_path, [{"id": "e", "image": "a.png", "site": "thyroid", "diagnosis": "Nodule."}])
    assert [row["text"] for row in gold(out).values()] == ["Give the diagnosis of this thyroid ultrasound image."]


def test_both_cue_versions_by_their_text(tmp_path: Path) -> None:
    records = [
        REPORT,
        talk(
            "t", "<image>\n有结节吗？", "有。", "结节在哪里？", "位于右叶。", "检查部位：甲状腺。大小？",
            "甲状腺约5cm。", exam_id="T", site="甲状腺",
        ),
        talk("n", "<image>\n这是什么？", "肝脏。"),
    ]  # fmt: skip
    write_json(tmp_path / "exams.json", records)
    arguments = ["exams", str(tmp_path / "exams.json"), "--out", str(tmp_path / "out"), "--site-cue", "both"]
    assert run_import(*arguments)["versions"] == ["with_site", "without_site"]
    named, bare = gold(tmp_path / "out" / "with_site"), gold(tmp_path / "out" / "without_site")
    assert {key: (row["text"], row["answer"]) for key, row in named.items()} == {
        "US-1-q1": ("请描述该甲状腺超声图像的所见。", "甲状腺右叶见低回声结节。"),
        "US-1-q2": ("请给出该甲状腺超声图像的诊断。", "右叶结节。"),
        "t-q1": ("检查部位：甲状腺。有结节吗？", "有。"),
        "t-q2": ("检查部位：甲状腺。结节在哪里？", "位于右叶。"),
        "t-q3": ("检查部位：甲状腺。大小？", "甲状腺约5cm。"),
        "n-q1": ("这是什么？", "肝脏。"),
    }
    assert {key: (row["text"], row["answer"]) for key, row in bare.items()} == {
        "US-1-q1": ("请描述该超声图像的所见。", "甲状腺右叶见低回声结节。"),
        "US-1-q2": ("请给出该超声图像的诊断。", "检查部位：甲状腺。右叶结节。"),
        "t-q1": ("有结节吗？", "有。"),  # a closed answer stays closed
        "t-q2": ("结节在哪里？", "检查部位：甲状腺。位于右叶。"),
        "t-q3": ("大小？", "甲状腺约5cm。"),
        "n-q1": ("这是什么？", "肝脏。"),
    }
    assert named["t-q1"]["answer_type"] == bare["t-q1"]["answer_type"] == "CLOSED"
    assert {key: row["split"] for key, row in named.items()} == {key: row["split"] for key, row in bare.items()}
    files = [tmp_path / "out" / f"{cue}_site" / "import.json" for cue in ("with", "without")]
    cards = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    assert cards[0]["split_hash"] == cards[1]["split_hash"]
    assert cards[0]["notes"]["questions_without_site"] == 1


def test_pictures_of_each_turn(tmp_path: Path) -> None:
    texts = ("<image>\n<image>\n第一？", "甲。", "第二？", "乙。", "前<image>后<image>有别吗？", "丙。")
    record = talk("p", *texts, "<image>", "丁。")
    record["image"], record["valid_frames"] = list("abcde"), [1, 2]
    _, out = imported(tmp_path, [record], "--split", "1,0,0")
    rows = list(gold(out).values())
    assert [row["image"] for row in rows] == [["a", "b"], ["a", "b"], ["c", "d"], "e"]
    assert [row["text"] for row in rows] == ["第一？", "第二？", "前<image>后<image>有别吗？", "请描述该图像。"]
    assert [row["valid_frames"] for row in rows] == [[1], [1], [0], []]


def test_official_split_language_and_answer_type_of_the_record(tmp_path: Path) -> None:
    records = [
        talk("a", "<image>\nIs it cystic?", "Yes.", split="test"),
        talk("b", "<image>\n是囊性吗？", "不是", split="train", answer_type="OPEN", lang="zh"),
    ]
    card, out = imported(tmp_path, records)
    rows = gold(out)
    assert (rows["a-q1"]["split"], rows["a-q1"]["lang"], rows["a-q1"]["answer_type"]) == ("test", "en", "CLOSED")
    assert (rows["b-q1"]["split"], rows["b-q1"]["lang"], rows["b-q1"]["answer_type"]) == ("train", "zh", "OPEN")
    assert card["split_rule"] == "official"
    assert card["duplicates"]["pictures_in_several_splits"] == 1  # both are about a.png


def test_an_exam_in_two_official_splits_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        talk(name, f"<image>\n是{name}吗？", "是", split=split, image=f"{place}.png", exam_id="US-1")
        for place, (name, split) in enumerate((("a", "train"), ("b", "test")))
    ]
    card, out = imported(tmp_path, asked)
    assert card["duplicates"]["exams_across_splits"] == 1 and card["duplicates"]["across_splits"] == 0
    assert lines(out / "duplicates.jsonl") == [{"match": "exam", "splits": ["test", "train"], "studies": ["US-1"]}]
    assert "across splits: 0 pictures, 1 exams\n" in capsys.readouterr().out


def test_records_without_text_and_other_languages_are_listed(tmp_path: Path) -> None:
    records = [REPORT, {"id": "empty", "image": "a.png", "findings": ""}, talk("e", "<image>\nWhat?", "Liver.")]
    card, out = imported(tmp_path, records, "--lang", "zh")
    assert card["records"] == {"read": 3, "used": 1, "skipped": 1, "left_out": {"lang_en": 1}}
    assert lines(out / "skipped.jsonl") == [{"place": "#1", "id": "empty", "reason": "no_text"}]


def test_what_scoring_would_refuse_is_listed_and_in_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        talk("a", "<image>\nIs it cystic?", "Yes."),
        talk("b", "<image>\n是囊性吗？", "不是", lang="en"),
        talk("c", "<image>\n有结节吗？", "——", "在哪里？", "右叶。"),
        talk("d", "<image>\nCystic?", "No.", lang="zh"),
        # Its Chinese is gone without the site, so it is in neither version.
        talk("e", "<image>\n肝？", "CT", site="肝"),
        talk("f", "<image>\nShow 甲状腺?", "Yes", site="甲状腺"),
    ]
    write_json(tmp_path / "exams.json", records)
    run_import("exams", tmp_path / "exams.json", "--out", tmp_path / "out", "--site-cue", "both")
    for cue in ("with_site", "without_site"):
        folder = tmp_path / "out" / cue
        assert sorted(gold(folder)) == ["a-q1", "c-q2", "e-q1"]
        asked = [row["question_id"] for path in folder.glob("*_questions.jsonl") for row in lines(path)]
        lists = [folder / f"{path.name.removesuffix('_gold.jsonl')}.json" for path in folder.glob("*_gold.jsonl")]
        trained = [row["id"] for path in lists for row in json.loads(path.read_text(encoding="utf-8"))]
        assert sorted(trained) == sorted(asked) == ["a-q1", "c-q2", "e-q1"]
        assert lines(folder / "skipped.jsonl") == [
            {"place": "question", "id": "b-q1", "reason": "lang_contradicts_text"},
            {"place": "question", "id": "c-q1", "reason": "answer_says_nothing"},
            {"place": "question", "id": "d-q1", "reason": "lang_contradicts_text"},
            {"place": "question", "id": "f-q1", "reason": "lang_contradicts_text"},
        ]
        card = json.loads((folder / "import.json").read_text(encoding="utf-8"))
        assert card["questions"]["skipped_as_no_gold"] == {"lang_contradicts_text": 3, "answer_says_nothing": 1}
        assert (card["questions"]["read"], card["questions"]["written"]) == (7, 3)
        for path in folder.glob("*_gold.jsonl"):
            read_gold(path)
    assert "scoring would refuse them: lang contradicts text 3, answer says nothing 1" in capsys.readouterr().out


def test_no_cue_in_another_language_than_the_question(tmp_path: Path) -> None:
    records = [
        {"id": "r", "image": "a.png", "site": "甲状腺", "modality": "超声", "findings": "A nodule."},
        {"id": "z", "image": "a.png", "site": "thyroid", "findings": "结节。"},
        talk("t", "<image>\nWhat is it?", "A nodule.", site="甲状腺"),
        talk("v", "<image>\n这是什么？", "血管。", site="IVC"),
    ]
    write_json(tmp_path / "exams.json", records)
    run_import("exams", tmp_path / "exams.json", "--out", tmp_path / "out", "--site-cue", "both", "--split", "0,0,1")
    named, bare = (tmp_path / "out" / f"{cue}_site" for cue in ("with", "without"))
    assert {key: row["text"] for key, row in gold(named).items()} == {
        "r-q1": "Describe the findings of this image.",
        "z-q1": "请描述该超声图像的所见。",
        "t-q1": "What is it?",
        "v-q1": "检查部位：IVC。这是什么？",
    }
    assert [row["answer"] for row in gold(bare).values()] == [
        "A nodule.",
        "结节。",
        "A nodule.",
        "检查部位：IVC。血管。",
    ]
    notes = [json.loads((folder / "import.json").read_text(encoding="utf-8"))["notes"] for folder in (named, bare)]
    assert notes[0]["questions_left_without_site_in_another_language"] == 3
    assert notes[1]["answers_left_without_site_in_another_language"] == 3
    for folder in (named, bare):
        assert len(read_gold(folder / "test_gold.jsonl")) == 4


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([talk("a", "<image>\n问", "答", split="test"), talk("b", "<image>\n问", "答")], "sample b has no `split`"),
        ([talk("a", "<image>\n问", "答", split="dev")], "`split` is 'dev'; allowed: train, validate, test"),
        ([talk("a", "<image>\n问", "答", lang="fr")], "`lang` is 'fr'"),
        ([talk("a", "<image>\n问", "答")] * 2, "sample a: the `id` stands at #0 already"),
        ([talk("a", "<image>\n问", "答", "又问？")], "ends with a question that has no answer"),
        ([talk("a", "问", "答")], "1 pictures and 0 <image> tokens"),
        ([{**REPORT, "diagnosis": 3}], "`diagnosis` is of type int"),
        ([{**REPORT, "valid_frames": [5]}], "`valid_frames` holds 5"),
        (["x"], "must be an object"),
        ({"exams": []}, "a list of records is needed"),
    ],
)
def test_bad_manifests_are_refused(tmp_path: Path, records: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imported(tmp_path, records)
    assert not (tmp_path / "out").exists()
