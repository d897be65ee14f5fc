"""Report tables for the tests: made-up rows, in SQLite, CSV and Excel."""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.reports import RefusedRow, ReportMapping, ReportRow, read_reports

COLUMNS = {"accession_number": "检查号", "findings": "超声所见", "diagnosis": "超声提示", "version": "修改时间"}
HEADER = tuple(COLUMNS.values())
FINDINGS = "甲状腺右叶见一低回声结节，大小约12mm×8mm。"


def mapping(**changes: Any) -> ReportMapping:
    return ReportMapping(**{"columns": COLUMNS, **changes})


def sqlite_file(path: Path, rows: Iterable[Sequence[Any]], types: Sequence[str] = ()) -> Path:
    database = sqlite3.connect(path)
    names = ", ".join(f'"{name}" {kind}' for name, kind in zip(HEADER, types or [""] * len(HEADER), strict=True))
    database.execute(f"CREATE TABLE reports ({names})")
    database.executemany("INSERT INTO reports VALUES (?, ?, ?, ?)", rows)
    database.commit()
    database.close()
    return path


def csv_file(path: Path, rows: Iterable[Sequence[Any]], encoding: str = "utf-8", delimiter: str = ",") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([HEADER, *rows])
    return path


def parted(found: Iterable[ReportRow | RefusedRow]) -> tuple[dict[str, ReportRow], list[tuple[str, str]]]:
    """Usable rows by accession number, and (place, reason) of the others."""
    used: dict[str, ReportRow] = {}
    refused = []
    for row in found:
        if isinstance(row, RefusedRow):
            refused.append((row.place, row.reason))
        else:
            assert row.accession_number not in used
            used[row.accession_number] = row
    return used, refused


def read(
    source: str | Path, given: ReportMapping, **options: Any
) -> tuple[dict[str, ReportRow], list[tuple[str, str]]]:
    return parted(read_reports(source, given, **options))
