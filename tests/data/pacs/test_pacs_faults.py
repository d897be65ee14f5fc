"""Archives that fail: retried, then listed; what came is kept, and nothing half."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="llava_ultra_ext[dicom] is not installed")
pynetdicom = pytest.importorskip("pynetdicom", reason="llava_ultra_ext[hospital] is not installed")

from pydicom.dataset import Dataset  # noqa: E402

from llava_ultra_ext.data.pacs.dicomweb import DicomWebSource  # noqa: E402
from llava_ultra_ext.data.pacs.dimse import DimseSource  # noqa: E402
from llava_ultra_ext.data.pacs.retries import Passing, Retries  # noqa: E402
from llava_ultra_ext.data.pacs.source import Query, SourceError, Study, key_of  # noqa: E402

QUICK = Retries(3, 0.01)
STUDY = Study("2.25.1")
DATES = Query(dates=(date(2024, 1, 1), date(2024, 1, 2)))


def picture(uid: str) -> Dataset:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = UltrasoundImageStorage, uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "2.25.1", "2.25.2", "US"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 4, 4, 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = np.zeros(16, np.uint8).tobytes()
    return dataset


@contextmanager
def archive(
    held: list[str], sends: Callable[[int, str], bool], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[int, list[list[str]]]]:
    """An archive of one study; `sends(request number, uid)` says whether an instance is sent.

    Yields:
        Its port, and the instance UIDs of each C-GET as they come.
    """
    from pydicom.uid import UltrasoundImageStorage
    from pynetdicom import AE, evt, sop_class

    asked: list[list[str]] = []

    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        level = event.identifier.QueryRetrieveLevel
        asked_for = {"IMAGE": held, "SERIES": ["2.25.2"], "STUDY": ["2.25.1"]}
        for uid in asked_for[level]:
            row = Dataset()
            row.QueryRetrieveLevel, row.StudyInstanceUID, row.SeriesInstanceUID, row.Modality = (
                level,
                "2.25.1",
                "2.25.2",
                "US",
            )
            if level == "IMAGE":
                row.SOPInstanceUID = uid
            yield 0xFF00, row

    def get(event: Any) -> Iterator[Any]:
        wanted = event.identifier.SOPInstanceUID
        uids = [wanted] if isinstance(wanted, str) else list(wanted)
        asked.append(uids)
        sent = [uid for uid in uids if sends(len(asked), uid)]
        yield len(sent)
        for uid in sent:
            yield 0xFF00, picture(uid)

    entity = AE("ARCHIVE")
    entity.add_supported_context(UltrasoundImageStorage, scu_role=True, scp_role=True)
    entity.add_supported_context(sop_class.StudyRootQueryRetrieveInformationModelFind)
    entity.add_supported_context(sop_class.StudyRootQueryRetrieveInformationModelGet)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=tls, evt_handlers=[(evt.EVT_C_FIND, find), (evt.EVT_C_GET, get)]
    )
    try:
        yield server.socket.getsockname()[1], asked
    finally:
        server.shutdown()


def test_what_did_not_come_is_asked_for_again(tmp_path: Path) -> None:
    held = ["2.25.3.1", "2.25.3.2", "2.25.3.3"]
    with archive(held, lambda request, uid: request > 1 or uid == "2.25.3.2") as (port, asked):
        fetched = DimseSource("127.0.0.1", port, "ARCHIVE", retries=QUICK).fetch(STUDY, tmp_path)
    assert asked == [held, ["2.25.3.1", "2.25.3.3"]]
    assert fetched.new == 3 and fetched.failed == ()
    assert {str(pydicom.dcmread(path).SOPInstanceUID) for path in fetched.files} == set(held)


def test_what_never_comes_is_listed_by_its_key(tmp_path: Path) -> None:
    with archive(["2.25.3.1", "2.25.3.2"], lambda _, uid: uid == "2.25.3.2") as (port, asked):
        fetched = DimseSource("127.0.0.1", port, "ARCHIVE", retries=QUICK).fetch(STUDY, tmp_path)
    assert len(asked) == 3 and fetched.new == 1
    assert [(failure.instance, "3 attempts" in failure.reason) for failure in fetched.failed] == [
        (key_of("2.25.3.1"), True)
    ]


def test_a_full_spool_keeps_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with archive(["2.25.3.1"], lambda *_: True) as (port, _):
        monkeypatch.setattr(os, "fsync", full)
        fetched = DimseSource("127.0.0.1", port, "ARCHIVE", retries=QUICK).fetch(STUDY, tmp_path)
    assert fetched.files == () and len(fetched.failed) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_fetch_tells_what_failed_and_goes_on_later(tmp_path: Path) -> None:
    sent = ["2.25.3.2"]
    with archive(["2.25.3.1", "2.25.3.2"], lambda _, uid: uid in sent) as (port, asked):
        source = DimseSource("127.0.0.1", port, "ARCHIVE", retries=Retries(1))
        (study,) = source.studies(DATES)
        fetched = source.fetch(study, tmp_path)
        assert (study.uid, fetched.new, len(fetched.failed)) == ("2.25.1", 1, 1)
        assert fetched.study == study.key and len(fetched.files) == 1
        assert [failure.instance for failure in fetched.failed] == [key_of("2.25.3.1")]
        sent.append("2.25.3.1")
        fetched = source.fetch(study, tmp_path)
    assert fetched.new == 1 and len(fetched.files) == 2 and asked[-1] == ["2.25.3.1"]
    assert fetched.failed == ()


def test_tls_is_spoken_and_the_certificate_checked(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the test's certificates, is not installed")
    for name in ("good", "other"):
        made = f"-keyout {name}.key -out {name}.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost"
        command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 {made}"
        subprocess.run(command.split(), check=True, capture_output=True, cwd=tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "good.pem", tmp_path / "good.key")
    with archive(["2.25.3.1"], lambda *_: True, context) as (port, _):
        trusting = DimseSource("localhost", port, "ARCHIVE", ca_file=tmp_path / "good.pem", retries=QUICK, timeout=5)
        assert trusting.fetch(STUDY, tmp_path / "spool").new == 1
        for ca_file in (tmp_path / "other.pem", None):
            other = DimseSource("localhost", port, "ARCHIVE", ca_file=ca_file, retries=Retries(1), timeout=5)
            with pytest.raises(SourceError):
                list(other.studies(DATES))


def test_nobody_listens(tmp_path: Path) -> None:
    dimse = DimseSource("127.0.0.1", 9, "ARCHIVE", retries=QUICK, timeout=2)
    with pytest.raises(SourceError, match="3 times"):
        list(dimse.studies(DATES))
    (failure,) = dimse.fetch(STUDY, tmp_path).failed
    assert failure.instance == "" and "does not answer" in failure.reason
    with pytest.raises(SourceError, match="3 times"):
        list(DicomWebSource("http://127.0.0.1:9/dicom-web", retries=QUICK).studies(DATES))


@contextmanager
def web(answers: list[tuple[int, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers one after the other, the last one for ever."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, body = answers[min(len(asked), len(answers)) - 1]
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


ROW = b'[{"0020000D": {"vr": "UI", "Value": ["2.25.1"]}, "00080050": {"vr": "SH", "Value": ["A1"]}}]'


def test_a_busy_server_is_asked_again() -> None:
    with web([(503, b""), (429, b""), (200, ROW)]) as (url, asked):
        (study,) = DicomWebSource(url, retries=QUICK).studies(DATES)
    assert study.uid == "2.25.1" and study.accession_number == "A1" and len(asked) == 3


def test_a_refusal_is_not_asked_again() -> None:
    with web([(403, b"")]) as (url, asked), pytest.raises(SourceError, match="403"):
        list(DicomWebSource(url, retries=QUICK).studies(DATES))
    assert len(asked) == 1


def test_a_server_that_ignores_the_offset_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_ultra_ext.data.pacs.dicomweb._PAGE", 1)
    with web([(200, ROW)]) as (url, asked):
        assert len(list(DicomWebSource(url, retries=QUICK).studies(DATES))) == 1
    assert len(asked) == 2


def test_an_answer_that_is_none_is_said() -> None:
    with web([(200, b"<html>Geheim")]) as (url, asked), pytest.raises(SourceError, match="cannot be read") as caught:
        list(DicomWebSource(url, retries=QUICK).studies(DATES))
    assert len(asked) == 3 and "Geheim" not in str(caught.value)


def test_waits_double() -> None:
    waited: list[float] = []
    retries = Retries(4, 1.0, 3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tenacity.nap.time.sleep", waited.append)
        with pytest.raises(Passing):
            retries.run(lambda: (_ for _ in ()).throw(Passing("busy")))
    assert len(waited) == 3
    assert 1 <= waited[0] <= 1.5 and 2 <= waited[1] <= 2.5 and 3 <= waited[2] <= 3.5


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DicomWebSource("http://pacs.example/dicom-web", "u", "p"), "unencrypted"),
        (lambda: DicomWebSource("https://pacs.example/dicom-web", "u", "p", token="t"), "together"),
        (lambda: DicomWebSource("pacs.example"), "http"),
        (lambda: DimseSource("127.0.0.1", 104, "A", retrieve="push"), "get and move"),
        (lambda: DimseSource("127.0.0.1", 104, "A", retrieve="move"), "receive_port"),
        (lambda: DimseSource("127.0.0.1", 104, "TITLE-OF-17-CHARS"), "16"),
        (lambda: Query(), "whole archive"),
        (lambda: Query(["A*"]), "accession number 1"),
        (lambda: Query(dates=(date(2024, 2, 1), date(2024, 1, 1))), "Swap"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
