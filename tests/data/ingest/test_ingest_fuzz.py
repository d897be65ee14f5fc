"""Any report and any bytes of a file: no crash, and never half an exam."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_case import Hospital, speckle
from PIL import Image

from llava_ultra_ext.data.deidentify import quarantine
from llava_ultra_ext.data.dicom import refusal
from llava_ultra_ext.data.ingest.one_exam import Settings, Task, ingest_exam
from llava_ultra_ext.data.reports.row import ReportRow, make_row

TELLING = (
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"SQ",
    b"PN",
    b"DS",
    b"UN\0\0",
    b"\xfe\xff\xdd\xe0",
    b"1A",
    b"\\",
    b"ISO_IR",
)
PIECES = (
    "张三",
    "肝脏",
    "2024-03-05",
    "13812345678",
    "ＰＡＴ",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\ud83d",
    "(",
    "\\",
    "*",
    "12mm",
)

texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=6).map("".join)
damage = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6) | st.sampled_from(TELLING)), max_size=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, secret: Path) -> tuple[bytes, ...]:
    hospital = Hospital(tmp_path_factory.mktemp("fuzz"), secret)
    named = {"PatientName": "Zhang^San", "WindowCenter": 100, "WindowWidth": 200, "OtherPatientIDs": ["A", "B"]}
    paths = [hospital.picture("F1", "PAT1", speckle(number), **named) for number in range(2)]
    return tuple(path.read_bytes() for path in paths)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    cells=st.lists(texts, min_size=5, max_size=5),
    day=st.none() | st.dates(),
    places=damage,
    front=st.sampled_from([1200, 10**6]),
)
def test_no_crash_and_no_half_exam(
    files: tuple[bytes, ...],
    secret: Path,
    tmp_path: Path,
    cells: list[str],
    day: datetime.date | None,
    places: list[tuple[float, bytes]],
    front: int,
) -> None:
    broken = bytearray(files[1])
    for place, value in places:
        start = 132 + int(place * (min(front, len(broken)) - 133))
        broken[start : start + len(value)] = value
    paths = (tmp_path / "good", tmp_path / "bad")
    for path, data in zip(paths, (files[0], bytes(broken)), strict=True):
        path.write_bytes(data)
    names = ("findings", "diagnosis", "history", "patient_name", "patient_id")
    row = make_row({"accession_number": "F1", "exam_date": day, **dict(zip(names, cells, strict=True))})
    report = row if isinstance(row, ReportRow) else ReportRow("F1", "肝脏。", patient_id=cells[4].strip("\0"))
    exam, out = "0123456789abcdef", tmp_path / "out"
    outcome = ingest_exam(Task(exam, "digest", report, paths), Settings(out, secret))

    folder = out / "images" / exam[:2] / exam
    there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    reasons = {one["reason"] for one in outcome.refused}
    assert reasons <= {*quarantine.REASONS, *refusal.REASONS}
    assert all(json.loads(line)["exam"] == exam for line in outcome.audit)
    if outcome.record is None:
        assert there == [] and reasons
        return
    images = outcome.record["image"]
    assert [Path(name).name for name in images] == there and len(outcome.record["near_duplicates"]) == len(images) > 0
    for name in images:
        with Image.open(out / name) as picture:
            picture.load()
    used = outcome.files - sum(bool(one["instance"]) for one in outcome.refused)
    assert 1 <= used <= len(images)
    json.dumps(outcome.record, ensure_ascii=False).encode()
