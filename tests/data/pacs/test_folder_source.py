"""Studies of files in a folder, with and without a DICOMDIR."""

from __future__ import annotations

import os
import shutil
from datetime import date
from pathlib import Path

import pytest

pydicom = pytest.importorskip("pydicom", reason="llava_ultra_ext[dicom] is not installed")
pytest.importorskip("data_store", reason="the files come with pydicom-data")

from real_studies import make_studies  # noqa: E402

from llava_ultra_ext.data.dicom.files import dicom_files, listed_but_absent  # noqa: E402
from llava_ultra_ext.data.pacs.folder import FolderSource  # noqa: E402
from llava_ultra_ext.data.pacs.source import Query, SourceError, Study, key_of  # noqa: E402

YEAR = Query(dates=(date(2024, 1, 1), date(2024, 12, 31)))


@pytest.fixture(scope="module")
def disc(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("disc")
    held = make_studies(folder)
    (folder / "notes.txt").write_text("no DICOM")
    return folder, held


def test_studies_and_their_files(disc: tuple[Path, dict[str, list[str]]], tmp_path: Path) -> None:
    folder, held = disc
    source = FolderSource(folder)
    studies = list(source.studies(YEAR))
    assert [study.accession_number for study in studies] == list(held)
    assert [study.uid for study in source.studies(Query(["ACC-0003", "ACC-0009"]))] == ["2.25.3000"]
    assert [study.modality for study in source.studies(Query(["ACC-0003"], modality="CT"))] == ["CT"]
    assert list(source.studies(Query(dates=(date(2023, 1, 1), date(2023, 12, 31))))) == []
    assert {path.name: refused.reason for path, refused in source.refused.items()} == {"notes.txt": "not_dicom"}
    for study in studies:
        fetched = source.fetch(study, tmp_path)
        assert fetched.new == len(held[study.accession_number]) and fetched.failed == ()
        assert [path.stem for path in fetched.files] == sorted(key_of(uid) for uid in held[study.accession_number])
        assert source.fetch(study, tmp_path).new == 0
    assert source.fetch(Study("2.25.9"), tmp_path).files == ()
    assert os.stat(fetched.files[0]).st_mode & 0o077 == 0


def test_names_say_nothing(disc: tuple[Path, dict[str, list[str]]], tmp_path: Path) -> None:
    source = FolderSource(disc[0])
    for study in source.studies(YEAR):
        source.fetch(study, tmp_path)
        assert "ACC" not in repr(study)
    names = " ".join(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert "2.25" not in names and "ACC" not in names


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no folder"):
        list(FolderSource(tmp_path / "none").studies(YEAR))


def test_a_dicomdir_tells_what_is_missing(tmp_path: Path) -> None:
    shipped = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
    if not (shipped / "DICOMDIR").exists():
        pytest.skip("this pydicom ships no DICOMDIR")
    for name in ("77654033", "98892001", "98892003"):
        if (shipped / name).exists():
            shutil.copytree(shipped / name, tmp_path / name)
    shutil.copy(shipped / "DICOMDIR", tmp_path)
    files = list(dicom_files(tmp_path / "DICOMDIR"))
    assert files == sorted(files) == list(dicom_files(tmp_path)) and files
    before = listed_but_absent(tmp_path)
    files[0].unlink()
    absent = set(listed_but_absent(tmp_path)) - set(before)
    assert absent == {str(files[0].relative_to(tmp_path))}
