"""Any cells, any bytes: no crash, no row lost, never half of a report."""

from __future__ import annotations

import datetime
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_case import HEADER, mapping, parted, read, sqlite_file

from llava_ultra_ext.data.reports import REASONS, RefusedRow, ReportRow, read_reports
from llava_ultra_ext.data.reports.row import FIELDS, KEY, as_text, make_row

ANY = st.one_of(
    st.none(), st.text(max_size=60), st.binary(max_size=60), st.integers(), st.floats(), st.decimals(), st.dates(),
    st.datetimes(), st.sampled_from(["见结节。", "——", "\ud83d", "\0", "x" * 20_001, "2024-01-02", "1", "10", "２"]),
)  # fmt: skip
STORED = st.one_of(
    st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.binary(max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["a", "a ", " a", "A", "\ta", "a\0", "见结节。", "x" * 20_001, "1"]),
)  # fmt: skip


@given(st.fixed_dictionaries(dict.fromkeys(FIELDS, ANY)))
@settings(max_examples=100, deadline=None)
def test_any_cells(cells: dict[str, Any]) -> None:
    row = make_row(cells)
    if isinstance(row, RefusedRow):
        assert row.reason in REASONS
    else:
        assert row.accession_number and row.findings
        assert row.findings == as_text(cells["findings"]) and row.diagnosis == as_text(cells["diagnosis"])
        assert row.exam_date is None or isinstance(row.exam_date, datetime.date)
        "".join((row.findings, row.diagnosis, row.accession_number)).encode()


@given(st.lists(st.tuples(STORED, STORED, STORED, STORED), max_size=12))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_table(rows: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = list(read_reports(sqlite_file(Path(folder) / "r.db", rows), mapping(table="reports")))
    assert len(found) == len(rows)
    used, _ = parted(found)
    given_texts = Counter(as_text(row[1]) for row in rows)
    assert all(given_texts[row.findings] for row in used.values())


@given(
    st.one_of(st.binary(max_size=300), st.text(max_size=100).map(lambda t: t.encode("utf-8", "replace"))), st.booleans()
)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_csv(data: bytes, headed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "r.csv"
        file.write_bytes((",".join(HEADER) + "\n").encode() * headed + data)
        try:
            used, _ = read(file, mapping())
        except ValueError as error:
            assert str(error).startswith("r.csv: ")
        else:
            assert all(isinstance(row, ReportRow) for row in used.values())


@given(st.binary(max_size=400))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_excel(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "r.xlsx"
        file.write_bytes(b"PK\x03\x04" + data)
        try:
            read(file, mapping())
        except ValueError as error:
            assert str(error).startswith("r.xlsx: ")


def test_key_is_no_field() -> None:
    assert KEY not in FIELDS
