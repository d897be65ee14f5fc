"""CSV, TSV and Excel exports: rows go through a temporary SQLite table, so that they are ordered and streamed too.

The table lies in memory and, where it grows, in a file that SQLite removes as soon as it has opened it: not even a
killed process leaves a copy of the reports.
"""

from __future__ import annotations

import codecs
import csv
import sqlite3
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.reports.mapping import ReportMapping
from llava_ultra_ext.data.reports.row import PLACE, RefusedRow, as_text

SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".xlsm")
DELIMITERS = (",", "\t", ";", "|")
STAGED = "reports"

_LONGEST_CELL = 1 << 20
"""Characters; a quote that is never closed would otherwise take the rest of the file into one cell."""


def stage(path: Path, mapping: ReportMapping) -> tuple[sqlite3.Connection, list[RefusedRow]]:
    """A file's rows as the table `STAGED`, with a column for each field that the mapping names and for the place.

    Args:
        path: one of `SUFFIXES`.
        mapping: names columns, and where needed encoding or sheet.

    Returns:
        The database, and the rows whose cells do not fit the header.

    Raises:
        ValueError: the file is not readable, has another encoding, or lacks a column.
    """
    rows = _excel(path, mapping) if path.suffix.lower() in (".xlsx", ".xlsm") else _csv(path, mapping)
    names = [*mapping.columns, PLACE]
    refused: list[RefusedRow] = []

    def cells() -> Iterator[list[str]]:
        for row in rows:
            if isinstance(row, RefusedRow):
                refused.append(row)
            else:
                yield [as_text(cell).replace("\0", "\ufffd") for cell in row]  # SQLite's trim would stop at NUL

    database = sqlite3.connect("", check_same_thread=False)
    database.execute(f"CREATE TABLE {STAGED} ({', '.join(f'{name} TEXT' for name in names)})")
    try:
        database.executemany(f"INSERT INTO {STAGED} VALUES ({', '.join('?' for _ in names)})", cells())
    except UnicodeEncodeError:  # half a character, which no file in UTF-8 or GB18030 holds
        raise ValueError(f"{path.name}: holds half a character. Export it again.") from None
    database.commit()
    return database, refused


def _csv(path: Path, mapping: ReportMapping) -> Iterator[list[Any] | RefusedRow]:
    encoding = mapping.encoding or find_encoding(path)
    delimiter = _delimiter(path, encoding, mapping)
    csv.field_size_limit(_LONGEST_CELL)
    with _opened(path, encoding) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)  # or a lost quote swallows rows
        try:
            header = [name.strip() for name in next(reader)]
            places = _places(header, mapping, path)
            for row in reader:
                place = f"line {reader.line_num}"
                if not any(cell.strip() for cell in row):
                    yield RefusedRow(place, "empty")
                elif len(row) != len(header):
                    yield RefusedRow(place, "cell_count")
                else:
                    yield [*(row[index] for index in places), place]
        except csv.Error:
            raise ValueError(f"{path.name}: line {reader.line_num}: a quote is not closed, or the line is no text. "
                             "Export it again, with quotes around texts.") from None  # fmt: skip
        except UnicodeDecodeError:
            raise _not(encoding, path, reader.line_num) from None


def find_encoding(path: Path) -> str:
    """``utf-8-sig``, ``utf-16`` or ``gb18030``: by the byte order mark, else the first that can read the whole file.

    Raises:
        ValueError: none can.
    """
    with _opened_bytes(path) as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
    for encoding in ("utf-8-sig", "gb18030"):
        decoder = codecs.getincrementaldecoder(encoding)()
        with _opened_bytes(path) as file:
            try:
                while chunk := file.read(1 << 20):
                    decoder.decode(chunk)
                decoder.decode(b"", final=True)
                return encoding
            except UnicodeDecodeError:
                continue
    raise ValueError(
        f"{path.name}: is neither UTF-8 nor GB18030. Export it in one of them, or say its `encoding` in the mapping."
    )


def _delimiter(path: Path, encoding: str, mapping: ReportMapping) -> str:
    """The one under which the header has every column; where none does, the one under which it has the most."""
    with _opened(path, encoding) as file:
        try:
            line = file.readline(_LONGEST_CELL)
        except UnicodeDecodeError:
            raise _not(encoding, path, 1) from None
    if not line.strip():
        raise ValueError(f"{path.name}: has no header. Its first line must name the columns.")

    def found(delimiter: str) -> int:
        header = next(csv.reader([line], delimiter=delimiter), [])
        return len({name.strip() for name in header} & set(mapping.columns.values()))

    return max(DELIMITERS, key=found)


def _excel(path: Path, mapping: ReportMapping) -> Iterator[list[Any] | RefusedRow]:
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise ImportError("Excel files need openpyxl: pip install 'llava_ultra_ext[hospital]'") from None
    _opened_bytes(path).close()
    broken = (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, EOFError)
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        names = book.sheetnames
    except (*broken, OSError, SyntaxError):  # SyntaxError: of XML
        raise ValueError(f"{path.name}: is no Excel file (.xlsx), or is damaged. Save it again as .xlsx.") from None
    try:
        if (mapping.sheet or names[0]) not in names:
            raise ValueError(f"{path.name}: has no sheet {mapping.sheet}. It has: {', '.join(names)}.")
        rows = book[mapping.sheet or names[0]].iter_rows(values_only=True)
        header = [as_text(cell) for cell in next(rows, ())]
        places = _places(header, mapping, path)
        for number, row in enumerate(rows, start=2):
            cells = [*row, *([None] * (len(header) - len(row)))]  # a sheet leaves out empty cells at the end
            if all(cell is None or not as_text(cell) for cell in cells):
                yield RefusedRow(f"row {number}", "empty")
            else:
                yield [*(cells[index] for index in places), f"row {number}"]
    except (SyntaxError, zipfile.BadZipFile, EOFError):
        raise ValueError(f"{path.name}: is damaged. Save it again as .xlsx.") from None
    finally:
        book.close()


def _places(header: Sequence[str], mapping: ReportMapping, path: Path) -> list[int]:
    """Number of each field's column.

    Raises:
        ValueError: one is missing, or its name stands twice.
    """
    mapping.check_columns(header, path.name)
    doubled = [name for name in mapping.columns.values() if header.count(name) > 1]
    if doubled:
        raise ValueError(f"{path.name}: has the column {doubled[0]} {header.count(doubled[0])} times. Rename one.")
    return [header.index(column) for column in mapping.columns.values()]


def _opened(path: Path, encoding: str) -> Any:
    _opened_bytes(path).close()
    return open(path, encoding="utf-8-sig" if encoding.lower().replace("_", "-") == "utf-8" else encoding, newline="")


def _opened_bytes(path: Path) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise ValueError(f"{path.name}: cannot be read ({error.strerror}). Give a file of reports.") from None


def _not(encoding: str, path: Path, line: int) -> ValueError:
    return ValueError(f"{path.name}: is not {encoding} behind line {line}. Give its `encoding` in the mapping.")
