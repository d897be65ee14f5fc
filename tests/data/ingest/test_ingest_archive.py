"""An archive that is asked by number or by dates: what is fetched is removed, what does not come is asked for again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ingest_case import Hospital, ward

from llava_ultra_ext.data.ingest import sources
from llava_ultra_ext.data.pacs.folder import FolderSource
from llava_ultra_ext.data.pacs.source import Failure, Fetched, Query, Study


class Archive:
    """A folder behind the face of an archive.

    Args:
        folder: its files.
        broken: accession numbers whose studies do not come whole.
    """

    def __init__(self, folder: Path, broken: set[str]) -> None:
        self.folder, self.broken = FolderSource(folder), broken
        self.fetched: list[str] = []

    def studies(self, query: Query) -> Iterator[Study]:
        return self.folder.studies(query)

    def fetch(self, study: Study, folder: Path) -> Fetched:
        self.fetched.append(study.accession_number)
        fetched = self.folder.fetch(study, folder)
        bad = study.accession_number in self.broken
        return replace(fetched, failed=(Failure("", "timed out"),)) if bad else fetched


@pytest.fixture
def archive(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> Archive:
    made = Archive(hospital.folder / "images", set())
    monkeypatch.setattr(sources, "open_source", lambda options: made)
    return made


def test_fetched_files_go_and_nothing_else_does(hospital: Hospital, archive: Archive, tmp_path: Path) -> None:
    ward(hospital, 3)
    hospital.report("ACC*", patient_id="PAT0000")  # would be asked for as a pattern
    spool, out = tmp_path / "spool", tmp_path / "out"
    (spool / "0123456789abcdef01234567").mkdir(parents=True)  # a study of a run that was killed
    (spool / "0123456789abcdef01234567" / "a.dcm").write_bytes(b"")
    (spool / "theses").mkdir()
    (spool / "notes.txt").write_text("mine")
    archive.broken = {"ACC0001"}
    exam = [hospital.exam(f"ACC{number:04d}") for number in range(3)]
    found = hospital.ingest(out, spool=str(spool))
    assert sorted(found.exams) == sorted([exam[0], exam[2]])
    assert found.lines("incomplete") == [{"exam": exam[1], "missing": 1, "reason": "timed out"}]
    assert found.lines("unmatched") == [{"exam": hospital.exam("ACC*")}]
    assert len(list(spool.glob("[0-9a-f]*/*.dcm"))) == 3  # they are not asked for twice
    archive.broken, archive.fetched = set(), []
    found = hospital.ingest(out, spool=str(spool))
    assert archive.fetched == ["ACC0001"] and sorted(found.exams) == sorted(exam)
    assert sorted(path.name for path in spool.iterdir()) == ["notes.txt", "theses"]


def test_an_archive_gives_what_a_folder_gives(
    hospital: Hospital, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward(hospital, 2)
    hospital.picture("ACC0777", "PAT7")
    asked = hospital.ingest(tmp_path / "asked")
    listed = hospital.ingest(tmp_path / "listed", "--dates", "2024-01-01", "2024-12-31")
    monkeypatch.undo()
    folder = hospital.ingest(tmp_path / "folder")
    for found in (asked, listed):
        assert (found.out / "exams.json").read_bytes() == (folder.out / "exams.json").read_bytes()
    assert listed.lines("unmatched") == folder.lines("unmatched") and len(listed.lines("unmatched")) == 1
    assert asked.lines("unmatched") == []  # who asks for numbers does not hear of others
    assert not (tmp_path / "asked.spool").exists() and folder.card["folder"] == {"of_exams": 4, "without_report": 1}
