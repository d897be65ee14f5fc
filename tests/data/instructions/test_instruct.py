"""Instructions by template: one record an exam and stage, both versions, several phrasings, the doctor's own words."""

from __future__ import annotations

from pathlib import Path

import pytest
from instruct_case import exam, instruct, lines, listed, manifest

from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.importing import main as import_main
from llava_ultra_ext.data.instructions.command import main

SITES = ("甲状腺", "乳腺", "肝脏", "眼部")


def test_one_record_an_exam_in_each_stage(tmp_path: Path) -> None:
    records = [exam(number, site=SITES[number % 4]) for number in range(40)]
    card = instruct(tmp_path, records, "--site-cue", "both")
    for version in ("with_site", "without_site"):
        for stage in ("stage1", "stage2"):
            found = [Exam.from_record(one) for one in listed(tmp_path / "out" / version / f"{stage}.json")]
            assert [one.exam_id for one in found] == [record["exam_id"] for record in records]
            assert all(len(one.groups) == 1 and len(one.groups[0]) == 2 and one.findings for one in found)
    assert card["exams"] == 40 and card["written_by"] == {"template": 40} and card["refused"] == {}


def test_the_site_is_in_the_question_or_in_the_answer(tmp_path: Path) -> None:
    instruct(tmp_path, [exam(number) for number in range(60)], "--site-cue", "both")
    asked_for_site = 0
    for version in ("with_site", "without_site"):
        for record in listed(tmp_path / "out" / version / "stage2.json"):
            turns = record["conversations"]
            for human, gpt in zip(turns[::2], turns[1::2], strict=True):
                if "部位" in human["value"]:
                    asked_for_site += 1
                    assert "甲状腺" not in human["value"] and "甲状腺" in gpt["value"]
                else:
                    assert ("甲状腺" in human["value"]) == (version == "with_site")
                    assert version == "with_site" or "甲状腺" in gpt["value"]
    assert asked_for_site > 20


def test_answers_are_the_doctors_words_in_several_phrasings(tmp_path: Path) -> None:
    records = [exam(number) for number in range(80)]
    instruct(tmp_path, records)
    questions = set()
    for record, given in zip(listed(tmp_path / "out" / "stage2.json"), records, strict=True):
        text = "".join(turn["value"] for turn in record["conversations"] if turn["from"] == "gpt")
        assert given["findings"] in text and given["diagnosis"] in text
        questions |= {turn["value"] for turn in record["conversations"] if turn["from"] == "human"}
    assert len(questions) > 60
    assert [one["conversations"][1]["value"] for one in listed(tmp_path / "out" / "stage1.json")] == [
        one["findings"] for one in records
    ]


def test_same_seed_same_bytes_and_new_exams_change_no_old_one(tmp_path: Path) -> None:
    made = []
    for number, (count, seed) in enumerate(((5, 1), (5, 1), (9, 1), (5, 2))):
        folder = tmp_path / str(number)
        folder.mkdir()
        instruct(folder, [exam(one) for one in range(count)], "--seed", str(seed))
        made.append((folder / "out" / "stage2.json").read_text(encoding="utf-8").splitlines())
    assert made[0] == made[1] != made[3]
    assert [line.rstrip(",") for line in made[2][:6]] == [line.rstrip(",") for line in made[0][:6]]


def test_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    records = [
        exam(0), exam(1, findings=None), exam(2, findings="——"), exam(3, image=None), exam(4, findings="A cyst."),
        exam(0), "x", exam(5, image=[""]), exam(6, findings=7), exam(7, diagnosis=None, site=None),
        exam(8, image="a.png"),
    ]  # fmt: skip
    card = instruct(tmp_path, records)
    skipped = lines(tmp_path / "out" / "skipped.jsonl")
    assert {row["place"]: row["reason"] for row in skipped} == {
        **{"#1": "no_findings", "#2": "no_findings", "#3": "no_pictures", "#4": "not_chinese", "#5": "repeated_exam"},
        **{"#6": "bad_record", "#7": "image_type", "#8": "bad_record"},
    }
    assert card["exams"] + len(skipped) == card["records"] == 11
    last_but_one = listed(tmp_path / "out" / "stage2.json")[1]
    assert [turn["from"] for turn in last_but_one["conversations"]] == ["human", "gpt"]


def test_a_report_with_braces_is_quoted_as_it_is(tmp_path: Path) -> None:
    instruct(tmp_path, [exam(0, findings="见{site}结节{0}。", diagnosis="{findings}号结节")])
    text = (tmp_path / "out" / "stage2.json").read_text(encoding="utf-8")
    assert "见{site}结节{0}。" in text and "{findings}号结节" in text


def test_errors_leave_the_earlier_files(tmp_path: Path) -> None:
    instruct(tmp_path, [exam(0)])
    before = (tmp_path / "out" / "stage1.json").read_bytes()
    with pytest.raises(ValueError, match=r"no exam has what is needed \(no_findings 1\)"):
        main([str(manifest(tmp_path, [exam(1, findings="")])), "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="is the file that MANIFEST reads"):
        main([str(tmp_path / "out" / "stage1.json"), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "stage1.json").read_bytes() == before
    assert not list((tmp_path / "out").glob(".*"))


def test_import_reads_what_instruct_writes(tmp_path: Path) -> None:
    instruct(tmp_path, [exam(number) for number in range(10)])
    out = tmp_path / "imported"
    assert import_main(["exams", str(tmp_path / "out" / "stage2.json"), "--out", str(out)]) == 0
