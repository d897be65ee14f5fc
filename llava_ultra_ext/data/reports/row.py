"""One report of one exam, as the paper lists it: "examination sites, medical histories, ultrasound observations,
diagnosis" (4.1); and the row that is none, with its reason.

Neither shows any of its text when it is printed or logged: rows come before de-identification.
"""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from llava_ultra_ext.data.json_lines import is_clean
from llava_ultra_ext.data.languages import says_nothing

FIELDS = (
    *("accession_number", "patient_id", "patient_name", "exam_date", "site", "history", "findings", "diagnosis"),
    "version",
)
"""What a column can be."""

PLACE = "place"
"""Cell that says where a row stands, beside those of `FIELDS`."""

KEY = "report_key"
"""Cell by which rows are ordered: the accession number as the database cuts it to text, without spaces around it."""

LONGEST_NUMBER = 64
"""Characters of an accession number (0008,0050) or patient id (0010,0020). DICOM's VR SH has 16 and LO 64; hospitals
write longer ones into their databases."""

LONGEST_TEXT = 20_000
"""Characters of any other field. Our choice: twenty times a long report; more is a file that stands in a cell."""

REASONS = {
    "empty": "no cell of the row holds anything",
    "no_accession_number": "without it no picture is found",
    "bad_accession_number": f"longer than {LONGEST_NUMBER} characters, or with tabs, other control "
    "signs, or full-width forms",
    "bad_exam_date": "no date that is known: 2024-01-31, 2024/1/31, 2024年1月31日, 20240131",
    "broken_text": "a cell holds bytes or signs that are no text",
    "too_long": f"a cell holds more than {LONGEST_TEXT} characters",
    "no_findings": "the findings (超声所见) are empty, or nothing but punctuation",
    "cell_count": "more or fewer cells than the header; a quote or a delimiter is missing",
    "superseded": "the accession number has a row of a later version",
    "repeated": "says the same as another row of its accession number and version",
    "conflict": "another row of its accession number, of the same version or without any, has another text",
}
"""Reason of a `RefusedRow` -> what it means."""

_DATE = re.compile(r"([0-9]{4})([-/.年])([0-9]{1,2})[-/.月]([0-9]{1,2})日?(?:[ T].*)?", re.DOTALL)
_DICOM_DATE = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})(?:[0-9]{4,6}(?:\.[0-9]+)?)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class ReportRow:
    """A usable report.

    Args:
        accession_number: names the exam, (0008,0050).
        findings: what the sonographer saw (超声所见), never empty.
        diagnosis: 诊断, 超声提示; empty when unknown.
        site: as the hospital wrote it; `sites.SiteDictionary.normalise` reads it.
        history: 病史, 临床诊断.
        patient_id: (0010,0020).
        patient_name: only so that it can be found in the texts and removed.
        exam_date: day of the exam; None when unknown.
        version: as the table has it.
    """

    accession_number: str = field(repr=False)
    findings: str = field(repr=False)
    diagnosis: str = field(default="", repr=False)
    site: str = field(default="", repr=False)
    history: str = field(default="", repr=False)
    patient_id: str = field(default="", repr=False)
    patient_name: str = field(default="", repr=False)
    exam_date: datetime.date | None = field(default=None, repr=False)
    version: str = field(default="", repr=False)


@dataclass(frozen=True)
class RefusedRow:
    """A row that is not used.

    Args:
        place: where it stands: ``line 12`` of a file (the last line of the row), ``row 12`` of a sheet or of an answer.
        reason: a key of `REASONS`.
        accession_number: for pseudonyms; it identifies, and is not shown.
    """

    place: str
    reason: str
    accession_number: str = field(default="", repr=False)


def make_row(cells: Mapping[str, Any]) -> ReportRow | RefusedRow:
    """Check the cells of one row.

    Args:
        cells: any of `FIELDS` -> what the database or file holds; `PLACE` -> where it stands.
    """
    texts = {name: as_text(cells.get(name)) for name in FIELDS} | {"accession_number": number_of(cells)}
    reason, date = _fault(texts), None
    if not reason and texts["exam_date"] and (date := read_date(texts["exam_date"])) is None:
        reason = "bad_exam_date"
    if reason:
        shown = texts["accession_number"] if reason != "bad_accession_number" else ""
        return RefusedRow(str(cells.get(PLACE, "")), reason, shown[:LONGEST_NUMBER])
    return ReportRow(**{**texts, "exam_date": date})  # type: ignore[arg-type]


def number_of(cells: Mapping[str, Any]) -> str:
    """A row's accession number: a text without spaces around it, anything else as the database turns it into text."""
    given = cells.get("accession_number")
    return given.strip(" ") if isinstance(given, str) else as_text(cells.get(KEY, given))


def _fault(texts: Mapping[str, str]) -> str:
    """The first reason not to use a row; empty: none."""
    number = texts["accession_number"]
    if not any(texts.values()):
        return "empty"
    if not number:
        return "no_accession_number"
    if len(number) > LONGEST_NUMBER or _CONTROL.search(number) or number != as_text(number):
        return "bad_accession_number"
    if not is_clean(number) or "\ufffd" in number or number != unicodedata.normalize("NFKC", number).strip():
        return "bad_accession_number"
    if not all(is_clean(text) and "\ufffd" not in text for text in texts.values()):
        return "broken_text"
    if len(texts["patient_id"]) > LONGEST_NUMBER or any(len(text) > LONGEST_TEXT for text in texts.values()):
        return "too_long"
    return "no_findings" if says_nothing(texts["findings"]) else ""


def as_text(value: Any) -> str:
    """A cell as text: stripped, lines ended by ``\\n``; bytes are UTF-8 or GB18030, whole numbers have no point.

    What is no text in either encoding holds U+FFFD, by which `make_row` refuses it.
    """
    if value is None or (isinstance(value, (float, Decimal)) and not _is_finite(value)):
        return ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = decode(bytes(value))
    elif isinstance(value, (datetime.date, datetime.datetime)):
        value = value.isoformat()
    elif isinstance(value, (float, Decimal)) and abs(float(value)) < 1e15 and value == int(value):
        value = int(value)
    try:
        text = str(value)
    except ValueError:  # a whole number of more than 4,300 digits
        text = "\ufffd"
    return text.replace("\r\n", "\n").replace("\r", "\n").strip("\ufeff \t\n\u3000\x0b\x0c")


def _is_finite(value: float | Decimal) -> bool:
    return value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)


def decode(data: bytes) -> str:
    """UTF-8 where it is, else GB18030; signs that are neither become U+FFFD."""
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("gb18030", "replace")


def read_date(text: str) -> datetime.date | None:
    """The day of a date, or of a date and time; None: not known."""
    parts = _DATE.fullmatch(text) or _DICOM_DATE.fullmatch(text)
    if parts is None:
        return None
    year, month, day = (int(part) for part in parts.groups() if part.isdigit())
    try:
        return datetime.date(year, month, day)
    except ValueError:
        return None
