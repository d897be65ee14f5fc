"""The demo's checks must be able to fail: they find what was left, and ways that differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="llava_ultra_ext[dicom] is not installed")

import hospital_checks as checks
import hospital_plan
from dicom_frames import Source
from llava_ultra_ext.data.deidentify.keys import Secret

SECRET = Secret(bytes(32))


@pytest.fixture(scope="module")
def plan() -> hospital_plan.Plan:
    frames = np.zeros((1, 120, 160, 3), np.uint8)
    return hospital_plan.make_plan({name: Source(name, "made", "RGB", frames) for name in hospital_plan.FILES})


def test_every_identifier_is_in_the_hospital(plan: hospital_plan.Plan) -> None:
    rows = json.dumps(plan.rows, ensure_ascii=False)
    people = {study.person for study in plan.studies}
    headers = {person.spelled for person in people} | {person.number for person in people}
    headers |= {study.accession for study in plan.studies}
    uids = {word for word in plan.identifiers if word.startswith("2.25.")}
    assert len(uids) == sum(1 + 2 * len(study.files) for study in plan.studies)
    # A stranger whose pictures lie under another's number has his name in the header, and in his own report's row.
    assert all(word in rows or word in headers for word in plan.identifiers - uids)
    assert len({row["检查号"] for row in plan.rows}) == len(plan.rows)


@pytest.mark.parametrize("kind", ["plain", "escaped", "name", "parquet"])
def test_an_identifier_is_found_wherever_it_stands(kind: str, tmp_path: Path) -> None:
    if kind == "plain":
        (tmp_path / "a.log").write_text("患者张建国。")
    elif kind == "escaped":
        (tmp_path / "a.json").write_text(json.dumps(["患者张建国。"]))
    elif kind == "name":
        (tmp_path / "张建国.png").write_bytes(b"")
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist([{"findings": "患者张建国。"}] * 50), tmp_path / "a.parquet")
    assert list(checks.identifiers_in(["张建国", "李秀英"], [tmp_path])) == ["张建国"]


def test_ways_that_differ_are_told_and_the_ledger_is_not_compared(tmp_path: Path) -> None:
    for way in ("web", "get"):
        (tmp_path / way / "work").mkdir(parents=True)
        (tmp_path / way / "work" / "ledger.sqlite").write_text(way)
        for name in checks.EQUAL:
            (tmp_path / way / name).write_text("same")
    assert checks.unlike(tmp_path / "web", tmp_path / "get") == []
    (tmp_path / "get" / "exams.json").write_text("other")
    (tmp_path / "get" / "more.png").write_text("")
    found = checks.unlike(tmp_path / "web", tmp_path / "get")
    assert len(found) == 2 and any("exams.json" in line for line in found) and any("more.png" in line for line in found)


def test_a_date_of_the_own_report_is_found(plan: hospital_plan.Plan) -> None:
    texts = {"history": "", "findings": "", "diagnosis": "", "exam_date": "2023-01-01"}
    records = [{"exam_id": SECRET.pseudonym("accession", accession), **texts} for accession in plan.good]
    assert checks.dates_left(plan, SECRET, records) == []
    first, second = list(plan.good)[:2]
    records[0]["history"] = f"{plan.dates[first][0]}外院超声检查。"
    records[1]["exam_date"] = plan.good[second].day.isoformat()
    assert len(checks.dates_left(plan, SECRET, records[:-1])) == 3  # both, and the one that is missing
