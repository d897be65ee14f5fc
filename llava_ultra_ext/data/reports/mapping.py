"""Which column of a hospital's table is what: one small YAML file.

::

    table: us_reports              # or  query: SELECT … ;  neither for a CSV or Excel file
    columns:
      accession_number: 检查号
      findings: 超声所见
      diagnosis: 超声提示
      site: 检查部位
      version: 修改时间             # of several rows of one accession number, the highest version is used
    encoding: gb18030              # of a CSV file, found where it is not given
    sheet: 报告                    # of an Excel file, the first where it is not given
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from llava_ultra_ext.data.json_lines import read_text
from llava_ultra_ext.data.reports.row import FIELDS

FLAG = "--mapping"

REQUIRED = ("accession_number", "findings")


@dataclass(frozen=True)
class ReportMapping:
    """What `load_mapping` reads.

    Args:
        columns: one of `row.FIELDS` -> the column's name in the source.
        table: name of a table or view, with its schema where needed: ``pacs.us_reports``.
        query: one SELECT statement, in the place of `table`.
        encoding: of a CSV file; empty: found.
        sheet: of an Excel file; empty: the first.

    Raises:
        ValueError: a field that does not exist, one that is missing or doubled, or table and query at once.
    """

    columns: Mapping[str, str]
    table: str = ""
    query: str = ""
    encoding: str = ""
    sheet: str = ""

    def __post_init__(self) -> None:
        _refuse_unknown(self.columns, FIELDS, "`columns`")
        missing = [name for name in REQUIRED if name not in self.columns]
        if missing:
            raise ValueError(f"{FLAG}: `columns` has no {' and no '.join(missing)}. Name their columns.")
        if self.table and self.query:
            raise ValueError(f"{FLAG}: has `table` and `query`. Give one of them.")
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError:
            raise ValueError(
                f"{FLAG}: `encoding` {self.encoding!r} is unknown. Give utf-8 or gb18030, or leave it out."
            ) from None

    def check_columns(self, present: Iterable[str], place: str) -> None:
        """Whether a source has every column that is named.

        Args:
            present: names of its columns.
            place: the source, for the message.

        Raises:
            ValueError: one is missing; the message lists what is there.
        """
        found = list(present)
        missing = [f"{name}: {column}" for name, column in self.columns.items() if column not in found]
        if missing:
            raise ValueError(f"{place}: has no column for {'; '.join(missing)}. It has: {', '.join(found) or 'none'}.")


def load_mapping(path: str | Path) -> ReportMapping:
    """Read a mapping file.

    Raises:
        ValueError: unreadable, not YAML, or with a key that is unknown; the message lists the keys that are.
    """
    try:
        given = yaml.safe_load(read_text(path, FLAG, "a YAML file"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise ValueError(f"{FLAG} {path}: is not YAML{where}. Put texts with signs into quotes.") from None
    except RecursionError:
        raise ValueError(f"{FLAG} {path}: is nested too deeply. It is a list of columns.") from None
    if not isinstance(given, Mapping):
        raise ValueError(f"{FLAG} {path}: must hold `columns:` and where needed `table:` or `query:`.")
    _refuse_unknown(given, [field.name for field in fields(ReportMapping)], str(path))
    columns = given.get("columns")
    if not isinstance(columns, Mapping):
        raise ValueError(f"{FLAG} {path}: `columns` must map fields to column names. Fields: {', '.join(FIELDS)}.")
    texts = {name: value for name, value in given.items() if name != "columns"}
    for place, entries in (("`columns`", columns), (str(path), texts)):
        wrong = [name for name, value in entries.items() if not isinstance(value, str) or not value.strip()]
        if wrong:
            raise ValueError(f"{FLAG}: {place} gives no text for {wrong[0]}. Put it in quotes, or leave the key out.")
    return ReportMapping(columns=dict(columns), **{name: value.strip() for name, value in texts.items()})


def _refuse_unknown(given: Mapping[Any, Any], known: Iterable[str], place: str) -> None:
    unknown = [str(name) for name in given if name not in known]
    if unknown:
        raise ValueError(f"{FLAG}: {place} has the unknown key {', '.join(unknown)}. Known: {', '.join(known)}.")
