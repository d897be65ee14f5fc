"""DICOMweb, C-GET and C-MOVE against a real Orthanc: what it holds arrives as it is stored, once."""

from __future__ import annotations

import logging
from datetime import date
from pathlib import Path

import pytest

pydicom = pytest.importorskip("pydicom", reason="llava_ultra_ext[dicom] is not installed")
pytest.importorskip("dicomweb_client", reason="llava_ultra_ext[hospital] is not installed")

from llava_ultra_ext.data.pacs.dicomweb import DicomWebSource  # noqa: E402
from llava_ultra_ext.data.pacs.dimse import DimseSource  # noqa: E402
from llava_ultra_ext.data.pacs.retries import Retries  # noqa: E402
from llava_ultra_ext.data.pacs.source import Query, Source, SourceError, key_of  # noqa: E402

YEAR = Query(dates=(date(2024, 1, 1), date(2024, 12, 31)))
TWICE = Retries(2, 0.05)


def source(address: dict[str, str], way: str) -> Source:
    if way == "web":
        return DicomWebSource(
            address["ORTHANC_WEB"], address["ORTHANC_USER"], address["ORTHANC_PASSWORD"], retries=TWICE
        )
    port = int(address["ORTHANC_PORT"])
    receive = int(address["RECEIVE_PORT"])
    return DimseSource("127.0.0.1", port, "ORTHANC", retrieve=way, receive_port=receive, retries=TWICE)


@pytest.mark.parametrize("way", ["web", "get", "move"])
def test_everything_arrives_as_it_is_stored(
    orthanc, way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    archive = source(orthanc.address, way)
    studies = {study.accession_number: study for study in archive.studies(YEAR)}
    assert sorted(studies) == sorted(orthanc.held)
    for accession, study in studies.items():
        fetched = archive.fetch(study, tmp_path)
        assert fetched.failed == () and fetched.new == len(orthanc.held[accession])
        assert [path.stem for path in fetched.files] == sorted(key_of(uid) for uid in orthanc.held[accession])
        for path in fetched.files:
            dataset = pydicom.dcmread(path)
            assert dataset.AccessionNumber == accession and dataset.Modality == "US"
    syntaxes = {
        pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in tmp_path.rglob("*.dcm")
    }
    assert {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.5"} <= syntaxes  # not transcoded
    told = caplog.text + " ".join(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert not any(word in told for word in ("ACC-", "2.25.", "Synthetic", "SYN"))


@pytest.mark.parametrize("way", ["web", "get"])
def test_only_what_is_missing_is_fetched(orthanc, way: str, tmp_path: Path) -> None:
    archive = source(orthanc.address, way)
    (study,) = archive.studies(Query(["ACC-0001", "ACC-9999"]))
    first = archive.fetch(study, tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in first.files[1:]}
    first.files[0].unlink()
    again = archive.fetch(study, tmp_path)
    assert again.new == 1 and again.files == first.files
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize("way", ["web", "get"])
def test_dates_and_modality_choose(orthanc, way: str) -> None:
    archive = source(orthanc.address, way)
    february = Query(dates=(date(2024, 2, 1), date(2024, 2, 29)))
    assert [study.accession_number for study in archive.studies(february)] == ["ACC-0002"]
    assert [study.accession_number for study in archive.studies(Query(dates=YEAR.dates, modality="CT"))] == ["ACC-0003"]
    assert list(archive.studies(Query(["ACC-0001"], february.dates))) == []


def test_a_wrong_password_is_said_without_it(orthanc) -> None:
    archive = DicomWebSource(orthanc.address["ORTHANC_WEB"], "ultra", "wr0ng", retries=TWICE)
    with pytest.raises(SourceError, match=r"401.*password") as caught:
        list(archive.studies(YEAR))
    assert "wr0ng" not in str(caught.value) + repr(archive)


def test_a_title_that_the_archive_does_not_know_is_said(orthanc, tmp_path: Path) -> None:
    archive = source(orthanc.address, "move")
    (study,) = archive.studies(Query(["ACC-0002"]))
    archive.calling = "STRANGER"
    (failure,) = archive.fetch(study, tmp_path).failed
    assert "title" in failure.reason or "refuses" in failure.reason
