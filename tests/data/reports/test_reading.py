"""One report an accession number: versions, conflicts, reasons, order, resumption; from SQLite."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from report_case import FINDINGS, mapping, read, sqlite_file

from llava_ultra_ext.data.reports import RefusedRow, ReportRow, load_mapping, read_reports
from llava_ultra_ext.data.reports.row import as_text, make_row, read_date

TABLE = mapping(table="reports")


def test_rows_come_in_order_and_trimmed(tmp_path: Path) -> None:
    rows = [("b", "左叶。", "正常", None), (" a ", FINDINGS + "\r\n", None, None), (12, "见结节。", "", 1)]
    used, refused = read(sqlite_file(tmp_path / "r.db", rows), TABLE)
    assert list(used) == ["12", "a", "b"] and refused == []
    assert (used["a"].findings, used["a"].diagnosis) == (FINDINGS, "")


@pytest.mark.parametrize(
    ("versions", "winner", "reasons"),
    [
        (("2", "10", "9"), 1, ["superseded", "superseded"]),  # by value, not as texts
        (("2024-01-02", "2023-12-31", None), 0, ["superseded", "superseded"]),
        ((None, None, "1"), 2, ["conflict", "conflict"]),  # the first two contradict each other, the last decides
        (("1", "1", "0"), None, ["conflict", "conflict", "superseded"]),
        ((None, None, None), None, ["conflict"] * 3),
    ],
)
def test_last_version_wins(tmp_path: Path, versions: tuple[str, ...], winner: int | None, reasons: list[str]) -> None:
    rows = [("a", f"见结节{number}。", "", version) for number, version in enumerate(versions)]
    used, refused = read(sqlite_file(tmp_path / "r.db", rows), TABLE)
    assert sorted(reason for _, reason in refused) == sorted(reasons)
    assert [row.findings for row in used.values()] == ([] if winner is None else [f"见结节{winner}。"])


def test_equal_rows_are_one(tmp_path: Path) -> None:
    used, refused = read(sqlite_file(tmp_path / "r.db", [("a", FINDINGS, "", None), ("a ", FINDINGS, None, "")]), TABLE)
    assert list(used) == ["a"] and [reason for _, reason in refused] == ["repeated"]


def test_a_withdrawn_report_is_not_replaced_by_an_older_one(tmp_path: Path) -> None:
    used, refused = read(sqlite_file(tmp_path / "r.db", [("a", FINDINGS, "", "1"), ("a", "", "", "2")]), TABLE)
    assert used == {} and sorted(reason for _, reason in refused) == ["no_findings", "superseded"]


def test_every_row_is_used_or_listed(tmp_path: Path) -> None:
    rows = [
        (None, FINDINGS, "", None),
        (None, None, None, ""),
        ("x" * 65, FINDINGS, "", None),
        ("a\tb", FINDINGS, "", None),
        ("\ta", FINDINGS, "", None),
        ("a", "——", "", None),
        ("c", FINDINGS + "字" * 20_000, "", None),
        ("d", b"\xff\xfe\xff", "", None),
        ("e", FINDINGS, "", None),
        ("e\0f", FINDINGS, "", None),
    ]
    used, refused = read(sqlite_file(tmp_path / "r.db", rows), TABLE)
    assert list(used) == ["e"]
    assert sorted(reason for _, reason in refused) == sorted(
        [*["bad_accession_number"] * 4, "broken_text", "empty", "no_accession_number", "no_findings", "too_long"]
    )


def test_a_run_goes_on_behind_an_accession_number(tmp_path: Path) -> None:
    file = sqlite_file(tmp_path / "r.db", [(f"A{number:03}", FINDINGS, "", None) for number in range(50)])
    whole = [row.accession_number for row in read_reports(file, TABLE, batch=7) if isinstance(row, ReportRow)]
    rest = [row.accession_number for row in read_reports(file, TABLE, after="A020") if isinstance(row, ReportRow)]
    assert whole == sorted(whole) and len(whole) == 50 and rest == whole[21:]


def test_gb18030_in_sqlite(tmp_path: Path) -> None:
    file = sqlite_file(tmp_path / "r.db", [("a", FINDINGS, "", None)])
    import sqlite3

    database = sqlite3.connect(file)
    database.execute("UPDATE reports SET 超声所见 = CAST(? AS TEXT)", ("甲状腺㐀未见异常。".encode("gb18030"),))
    database.commit()
    assert read(file, TABLE)[0]["a"].findings == "甲状腺㐀未见异常。"


def test_a_query_may_hold_colons_percents_and_a_semicolon(tmp_path: Path) -> None:
    file = sqlite_file(tmp_path / "r.db", [("a", FINDINGS, "10%", "2024"), ("b", FINDINGS, ":x", "2023")])
    query = "SELECT * FROM reports WHERE 超声提示 LIKE '%:x' OR 超声提示 = '::';"
    assert list(read(f"sqlite:///{file}", mapping(query=query))[0]) == ["b"]


def test_errors_say_what_is_there_and_no_patient_text(tmp_path: Path) -> None:
    file = sqlite_file(tmp_path / "r.db", [("a", FINDINGS, "", None)])
    columns = {"accession_number": "检查号", "findings": "所见"}
    for given, message in (
        (mapping(table="report"), "has no table report. It has: reports"),
        (mapping(table="reports", columns=columns), "no column for findings: 所见. It has: 检查号, 超声所见"),
        (mapping(), "needs `table` or `query`"),
        (mapping(query="SELECT nothing"), "refuses the table or query"),
    ):
        with pytest.raises(ValueError, match=message):
            list(read_reports(file, given))
    with pytest.raises(ValueError) as caught:
        list(read_reports("postgresql://doctor:secret@127.0.0.1:1/pacs", mapping(table="r")))
    assert "secret" not in str(caught.value) and "doctor" not in str(caught.value)


def test_rows_show_nothing_when_they_are_printed() -> None:
    row = make_row({"accession_number": "A1", "findings": "张三", "patient_id": "P9"})
    assert repr(row) == "ReportRow()"
    assert "A1" not in repr(make_row({"accession_number": "A1", "findings": ""}))


@pytest.mark.parametrize(
    ("text", "day"),
    [
        *((text, datetime.date(2024, 1, 31)) for text in ("2024-01-31", "2024/1/31", "2024年1月31日", "20240131")),
        *((text, datetime.date(2024, 1, 31)) for text in ("2024-01-31T10:00:00", "2024-1-31 10:00", "20240131101112")),
        *((text, None) for text in ("2024-02-30", "31/01/2024", "2024", "2024131", "二〇二四年", "0000-01-01")),
    ],
)
def test_dates(text: str, day: datetime.date | None) -> None:
    assert read_date(text) == day
    row = make_row({"accession_number": "a", "findings": "见", "exam_date": text})
    assert row.exam_date == day if isinstance(row, ReportRow) else row.reason == "bad_exam_date"


def test_cells_of_any_kind() -> None:
    given = [None, 12.0, Decimal("7.0"), float("nan"), "见结节".encode("gb18030"), datetime.date(2024, 1, 2), 10**5000]
    assert [as_text(value) for value in given] == ["", "12", "7", "", "见结节", "2024-01-02", "\ufffd"]


MAPPING = "table: reports\ncolumns:\n  accession_number: 检查号\n  findings: 超声所见\n"


def test_mapping_file(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(MAPPING, encoding="utf-8")
    assert load_mapping(file).columns == {"accession_number": "检查号", "findings": "超声所见"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MAPPING + "  finding: x\n", "unknown key finding. Known: accession_number, patient_id"),
        (MAPPING + "tables: x\n", "unknown key tables. Known: columns, table, query"),
        (MAPPING + "query: SELECT 1\n", "has `table` and `query`"),
        (MAPPING + "encoding: gb99\n", "'gb99' is unknown"),
        ("columns: {findings: 所见}", "has no accession_number"),
        ("columns: {findings: 3, accession_number: a}", "gives no text for findings"),
        ("columns: [1]", "must map fields to column names"),
        ("- a", "must hold `columns:`"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_bad_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_mapping(file)


def test_other_databases_statements() -> None:
    """MySQL and Oracle are not run here; their statements order by code points too."""
    from sqlalchemy.dialects import mysql, oracle

    from llava_ultra_ext.data.reports.sql import SqlReports

    for dialect, collation in ((mysql.dialect(), "utf8mb4_bin"), (oracle.dialect(), "BINARY")):
        reports = SqlReports.__new__(SqlReports)
        reports.engine = type("Engine", (), {"dialect": dialect})()
        reports.mapping, reports._has_place = mapping(table="pacs.us"), False
        statement = str(reports.statement("A1").compile(dialect=dialect))
        assert f'COLLATE "{collation}"' in statement or f"COLLATE {collation}" in statement


def test_refused_rows_have_a_known_reason() -> None:
    found = make_row({})
    assert isinstance(found, RefusedRow) and found.reason == "empty"
