"""From a source to one report an accession number: the last version, and every other row with its reason.

The rule: of several rows of one accession number, the one with the highest `version` is used (numbers by value, times
and other texts as texts, no version below any). Rows of the same version, or without any, that say the same are one;
where they differ none is used, for nobody can say which is the last. If the last version cannot be used, no earlier one
takes its place: it was withdrawn.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.reports.mapping import ReportMapping
from llava_ultra_ext.data.reports.row import (
    FIELDS,
    KEY,
    LONGEST_NUMBER,
    PLACE,
    RefusedRow,
    ReportRow,
    as_text,
    make_row,
    number_of,
    read_date,
)

Version = tuple[int, Decimal, str]


def read_reports(
    source: str | Path, mapping: ReportMapping, *, after: str = "", batch: int = 1000
) -> Generator[ReportRow | RefusedRow, None, None]:
    """Every row of a source, used or refused, in the order of accession numbers.

    Args:
        source: a SQLAlchemy URL, or the path of a CSV, TSV, Excel or SQLite file.
        mapping: which column is what.
        after: accession number behind which to go on; rows without any are always told.
        batch: rows held at a time.

    Yields:
        At most one `ReportRow` an accession number. Rows read = rows yielded.

    Raises:
        ValueError: the source or the mapping is unusable; it says what is there.
    """
    from llava_ultra_ext.data.reports.sql import SqlReports, connect

    refused: list[RefusedRow] = []
    table = mapping
    if "://" in str(source):
        engine = connect(str(source))
    elif Path(source).suffix.lower() in (".db", ".sqlite", ".sqlite3"):
        if not Path(source).is_file():
            raise ValueError(f"{Path(source).name}: does not exist. Give a SQLite file, or a database's URL.")
        engine = connect(f"sqlite:///{source}")
    else:
        engine, refused, table = _staged(Path(source), mapping)
    try:
        reports = SqlReports(engine, table, batch)
        yield from refused
        # Closed before the engine, however the caller stops: an open cursor would complain of the lost database.
        with contextlib.closing(reports.rows(after)) as found:
            for _, rows in itertools.groupby(found, key=lambda row: row[KEY]):
                yield from _last_version(rows)
    finally:
        engine.dispose()


def _staged(path: Path, mapping: ReportMapping) -> tuple[Any, list[RefusedRow], ReportMapping]:
    from sqlalchemy import StaticPool, create_engine

    from llava_ultra_ext.data.reports.files import STAGED, SUFFIXES, stage

    if mapping.table or mapping.query:
        raise ValueError(f"--mapping: has `table` or `query`, but {path.name} is a file. Leave them out.")
    if path.suffix.lower() not in SUFFIXES:
        allowed = ", ".join((*SUFFIXES, ".db", ".sqlite"))
        raise ValueError(f"{path.name}: is no kind of file that is read. Give one of {allowed}, or a database's URL.")
    database, refused = stage(path, mapping)
    engine = create_engine("sqlite://", creator=lambda: database, poolclass=StaticPool, hide_parameters=True)
    return engine, refused, ReportMapping({name: name for name in mapping.columns}, table=STAGED)


def _last_version(rows: Iterator[Mapping[str, Any]]) -> Iterator[ReportRow | RefusedRow]:
    """The row to use of one accession number, and the others; one row is held at a time."""
    best: Mapping[str, Any] | None = None
    conflict = False
    for row in rows:
        if number_of(row) != row[KEY] or not row[KEY]:
            yield make_row(row)
        elif best is None:
            best = row
        elif _order(row) > _order(best):
            yield _refused(best, "conflict" if conflict else "superseded")
            best, conflict = row, False
        elif _order(row) < _order(best):
            yield _refused(row, "superseded")
        elif _texts(row) == _texts(best):
            yield _refused(row, "repeated")
        else:
            conflict = True
            yield _refused(row, "conflict")
    if best is not None:
        yield _refused(best, "conflict") if conflict else make_row(best)


def _order(row: Mapping[str, Any]) -> Version:
    text = as_text(row.get("version"))
    if not text:
        return 0, Decimal(0), ""
    try:
        number = Decimal(text)
        if number.is_finite() and read_date(text) is None:
            return 1, number, ""
    except InvalidOperation:
        pass
    return 2, Decimal(0), text


def _texts(row: Mapping[str, Any]) -> list[str]:
    return [as_text(row.get(name)) for name in FIELDS if name != "version"]


def _refused(row: Mapping[str, Any], reason: str) -> RefusedRow:
    return RefusedRow(str(row.get(PLACE, "")), reason, as_text(row.get("accession_number"))[:LONGEST_NUMBER])
