"""The command as a whole: determinism, refused and replaced folders, missing pictures, nothing dropped in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from import_case import lines, picture, run_import, write_json

from llava_ultra_ext.data import import_files, importing
from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.manifest import load_manifest
from llava_ultra_ext.eval.questions import read_questions


@pytest.fixture
def openi(tmp_path: Path) -> Path:
    """Ten studies of two pictures, each picture of its own shade; 7_2 is missing, 8_1 is broken."""
    folder = tmp_path / "openi"
    names = [f"{study}_{number}" for study in range(10) for number in (1, 2)]
    for shade, name in enumerate(names):
        picture(folder / f"{name}.png", shade)
    (folder / "7_2.png").unlink()
    (folder / "8_1.png").write_bytes(b"no picture")
    write_json(folder / "openi-zh.json", [{"image_id": name, "caption": f"报告{name[0]}。"} for name in names])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def split_of_exams(folder: Path) -> dict[str, str]:
    return {row["exam_id"]: row["split"] for path in folder.glob("*_gold.jsonl") for row in lines(path)}


def test_missing_pictures_are_listed_and_their_questions_kept(openi: Path, tmp_path: Path) -> None:
    card = run_import("openi", openi, "--out", tmp_path / "out")
    assert lines(tmp_path / "out" / "missing.jsonl") == [
        {"image": "7_2.png", "reason": "missing_picture", "ids": ["openi-7"]},
        {"image": "8_1.png", "reason": "not_a_picture", "ids": ["openi-8"]},
    ]
    assert card["missing_pictures"] == 2 and card["questions"]["written"] == 10


def test_skip_missing_leaves_them_out_and_says_so(openi: Path, tmp_path: Path) -> None:
    card = run_import("openi", openi, "--skip-missing", "--split", "1,0,0", "--out", tmp_path / "out")
    expected = {"read": 10, "written": 8, "skipped_as_no_gold": {}, "skipped_for_missing_pictures": 2}
    assert card["questions"] == expected
    assert lines(tmp_path / "out" / "skipped.jsonl") == [
        {"place": "question", "id": "openi-7", "reason": "missing_picture"},
        {"place": "question", "id": "openi-8", "reason": "missing_picture"},
    ]
    # What is left can be trained on and asked.
    exams, bad = load_manifest(tmp_path / "out" / "train.json", image_folder=str(openi), strategy="likelihood")
    assert len(exams) == 8 and not bad
    assert len(read_questions(tmp_path / "out" / "train_questions.jsonl", str(openi))) == 8
    assert len(read_questions(tmp_path / "out" / "train_gold.jsonl", str(openi))) == 8


def test_no_usable_question_is_an_error(openi: Path, tmp_path: Path) -> None:
    flags = ["--skip-missing", "--image-folder", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"no question is left to write \(missing_picture 10\)"):
        run_import("openi", openi, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["openi"]


def test_equal_pictures_pull_their_studies_into_one_split(openi: Path, tmp_path: Path) -> None:
    shares = ["--split", "0.4,0.3,0.3"]
    run_import("openi", openi, *shares, "--out", tmp_path / "before")
    before = split_of_exams(tmp_path / "before")
    other = next(study for study in "23456" if before[study] != before["0"])
    picture(openi / f"{other}_1.png", 0, compress_level=0)
    card = run_import("openi", openi, *shares, "--out", tmp_path / "after")
    after = split_of_exams(tmp_path / "after")
    assert after == {**before, other: before["0"]}
    assert card["duplicates"]["equal_pictures"] == 1 and card["duplicates"]["across_splits"] == 0


def test_the_same_input_gives_the_same_bytes_and_replaces_an_earlier_import(openi: Path, tmp_path: Path) -> None:
    run_import("openi", openi, "--seed", "4", "--out", tmp_path / "one")
    run_import("openi", openi, "--seed", "4", "--out", tmp_path / "elsewhere" / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "elsewhere" / "two")
    assert str(tmp_path) not in (tmp_path / "one" / "import.json").read_text()
    run_import("openi", openi, "--split", "0,0,1", "--out", tmp_path / "one")
    assert sorted(contents(tmp_path / "one")) == [
        "import.json", "missing.jsonl", "test.json", "test_gold.jsonl", "test_questions.jsonl",
    ]  # fmt: skip
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_training_records_are_exams(openi: Path, tmp_path: Path) -> None:
    run_import("openi", openi, "--split", "1,0,0", "--out", tmp_path / "out")
    records = json.loads((tmp_path / "out" / "train.json").read_text(encoding="utf-8"))
    exams = [Exam.from_record(record) for record in records]
    assert [exam.images for exam in exams[3:5]] == [("3_1.png", "3_2.png"), ("4_1.png", "4_2.png")]


def test_foreign_folders_are_refused(openi: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.docx").write_text("x")
    with pytest.raises(ValueError, match=r"holds thesis\.docx, which no import wrote"):
        run_import("openi", openi, "--out", out)
    (out / "thesis.docx").unlink()
    (out / "train.json").write_text("[]")
    with pytest.raises(ValueError, match="is not an earlier import of openi"):
        run_import("openi", openi, "--out", out)
    assert (out / "train.json").read_text() == "[]"
    (out / "train.json").unlink()
    picture(tmp_path / "busi" / "normal" / "1.png", 1)
    run_import("busi", tmp_path / "busi", "--out", out)
    with pytest.raises(ValueError, match="is not an earlier import of openi"):
        run_import("openi", openi, "--out", out)


def test_an_interrupted_import_leaves_the_old_one(openi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_import("openi", openi, "--out", tmp_path / "out")
    before = contents(tmp_path / "out")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importing, "write_card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_import("openi", openi, "--seed", "9", "--out", tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["openi", "out"]
    assert set(before) <= import_files.FILES


def test_what_the_command_answers(openi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = run_import("openi", openi, "--split", "1,0,0", "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "train     zh          10       0       10        20   X-Ray 10, normal 10\n" in said
    assert "missing or broken pictures: 2" in said and card["split_hash"] in said and str(tmp_path / "out") in said


def test_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importing.main(["vqa-rad", ".", "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert all(name in error for name in ("slake", "openi", "busi", "exams"))
    with pytest.raises(SystemExit):
        importing.main(["slake", "--help"])
    said = capsys.readouterr().out
    assert "--lang" in said and "--seed" not in said and "--site-cue" not in said
    with pytest.raises(ValueError, match=r"the shares' sum is 1\.1, must be 1"):
        importing.main(["busi", ".", "--out", str(tmp_path / "out"), "--split", "0.8,0.2,0.1"])


def test_neither_torch_nor_llava_is_loaded() -> None:
    code = (
        "import sys, llava_ultra_ext.data.importing as i\ntry: i.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'llava', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
