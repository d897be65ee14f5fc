"""The folder of an import: what it may replace, and what a killed import leaves behind."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from import_case import picture, run_import, write_json

from llava_ultra_ext.data import importing
from llava_ultra_ext.data.import_folder import restore_leftovers


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A list of two exams."""
    picture(tmp_path / "own" / "a.png", 1)
    exams = [{"id": name, "exam_id": name, "image": "a.png", "diagnosis": "结节"} for name in ("x", "y")]
    write_json(tmp_path / "own" / "train.json", exams)
    return tmp_path / "own"


@pytest.fixture
def imported(own: Path, tmp_path: Path) -> Path:
    """An import of it."""
    run_import("exams", own / "train.json", "--out", tmp_path / "out")
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def gone() -> int:
    """The number of a process that is no more."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


def test_what_is_read_may_not_lie_in_what_is_replaced(own: Path, imported: Path, tmp_path: Path) -> None:
    before = contents(imported)
    split = next(name for name in before if name in ("train.json", "validate.json", "test.json"))
    flags = ["--image-folder", str(own), "--out", str(imported)]
    with pytest.raises(ValueError, match=r"--out .*out: holds MANIFEST .*\.json, which is read"):
        run_import("exams", imported / split, *flags)
    (tmp_path / "link").symlink_to(imported)
    with pytest.raises(ValueError, match="holds MANIFEST"):
        run_import("exams", tmp_path / "link" / split, *flags)
    assert contents(imported) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds --image-folder"):
        run_import("exams", own / "train.json", "--image-folder", empty, "--out", empty)
    with pytest.raises(ValueError, match="holds FOLDER"):
        run_import("busi", empty, "--out", empty)


def test_files_that_were_changed_or_added_since_are_kept(own: Path, imported: Path) -> None:
    arguments = ("exams", own / "train.json", "--out", imported)
    run_import(*arguments)  # as the first import left it: replaced
    gold = next(imported.glob("*_gold.jsonl"))
    written = gold.read_bytes()
    gold.write_bytes(written + b"\n")  # corrected by hand
    with pytest.raises(ValueError, match=rf"{gold.name} was changed, or added, after the import"):
        run_import(*arguments)
    assert gold.read_bytes() == written + b"\n"
    gold.write_bytes(written)
    (imported / "skipped.jsonl").write_text("my notes")
    with pytest.raises(ValueError, match=r"skipped\.jsonl was changed, or added"):
        run_import(*arguments)


def test_a_file_that_comes_while_pictures_are_read_is_kept(
    own: Path, imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at = importing.look_at

    def meanwhile(*given: object) -> object:
        (imported / "thesis.docx").write_text("x")
        return look_at(*given)

    monkeypatch.setattr(importing, "look_at", meanwhile)
    with pytest.raises(ValueError, match=r"holds thesis\.docx"):
        run_import("exams", own / "train.json", "--out", imported)
    assert (imported / "thesis.docx").read_text() == "x"


def test_an_import_killed_between_its_renames_is_undone(
    own: Path, imported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, process = contents(imported), gone()
    new = imported.with_name(f".out.new{process}")
    imported.rename(imported.with_name(f".out.old{process}"))
    new.mkdir()
    (new / "train.json").write_text("[")
    with pytest.raises(ValueError, match=r"MANIFEST .*none\.json: cannot be read"):
        run_import("exams", own / "none.json", "--out", imported)
    assert contents(imported) == before
    assert sorted(path.name for path in imported.parent.iterdir()) == ["out", "own"]
    assert f"{imported}: an import was killed while it replaced this folder; the earlier one is back" in caplog.text
    assert f"{new}: removed" in caplog.text


def test_with_the_folder_in_place_what_was_put_aside_goes(imported: Path) -> None:
    before, old = contents(imported), imported.with_name(f".out.old{gone()}")
    old.mkdir()
    (old / "train.json").write_text("half removed")
    restore_leftovers(imported)
    assert contents(imported) == before and not old.exists()


def test_what_others_use_or_wrote_is_left(imported: Path, caplog: pytest.LogCaptureFixture) -> None:
    running = imported.with_name(f".out.new{os.getppid()}")
    foreign = imported.with_name(f".out.old{gone()}")
    for folder in (running, foreign, imported.with_name(f".output.new{gone()}")):
        folder.mkdir()
    (foreign / "thesis.docx").write_text("x")
    with caplog.at_level(logging.WARNING):
        restore_leftovers(imported)
    assert running.is_dir() and (foreign / "thesis.docx").read_text() == "x"
    assert len(list(imported.parent.glob(".output.*"))) == 1
    assert f"{foreign}: is left there" in caplog.text


def test_a_full_disk_names_the_folder(own: Path, imported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(imported)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(importing, "write_lines", full)
    monkeypatch.setattr(importing, "write_splits", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{imported}'"):
        run_import("exams", own / "train.json", "--out", imported)
    assert contents(imported) == before and sorted(os.listdir(imported.parent)) == ["out", "own"]
