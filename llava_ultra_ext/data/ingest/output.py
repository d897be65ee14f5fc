"""What an ingest leaves, written when all exams are finished; the same exams give the same bytes.

``exams.json``             LLaVA's list with our keys: what ``import exams``, ``instruct`` and the training read
``exams.parquet``          the same, for ``datasets.load_dataset("parquet", …)``
``audit.jsonl``            what was removed how often, without any identifier
``quarantine.jsonl``       files and exams that were kept back, each with its reason
``unmatched.jsonl``        reports without pictures and pictures without a report
``refused_reports.jsonl``  rows of the database that could not be used
``incomplete.jsonl``       exams that could not be fetched whole
``ingest.json, card.png``  the data card
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.ingest.card import DataCard
from llava_ultra_ext.data.ingest.joining import LeftOver
from llava_ultra_ext.data.ingest.ledger import FORMAT, Ledger
from llava_ultra_ext.data.ingest.one_exam import TEXTS
from llava_ultra_ext.data.list_file import ListFile
from llava_ultra_ext.data.sites import load_sites
from llava_ultra_ext.data.whole_file import write_all_whole, write_whole

CARD = "ingest.json"
_NAMES = (
    *("exams.json", "exams.parquet", "audit.jsonl", "quarantine.jsonl", "refused_reports.jsonl", "unmatched.jsonl"),
    *("incomplete.jsonl", CARD, "card.png"),
)
_BATCH = 1000  # rows of Parquet held at a time


def write_output(
    out: Path, ledger: Ledger, left: LeftOver, settings: Mapping[str, Any], sites: str | None = None
) -> dict[str, Any]:
    """Write all of them.

    Args:
        out: the folder.
        ledger: of finished exams.
        left: what did not become one.
        settings: as the card shows them.
        sites: a user's own dictionary of sites.

    Returns:
        The card.

    Raises:
        OSError: one cannot be written; the earlier ones stay.
        ValueError: a library is missing.
    """
    _remove_torn(out)
    card = DataCard(load_sites(sites))
    records, audit, kept_back = (ListFile(out / name) for name in ("exams.json", "audit.jsonl", "quarantine.jsonl"))
    lists: list[ListFile | _ParquetList] = [records, audit, kept_back]
    try:
        lists.append(parquet := _ParquetList(out / "exams.parquet"))
        for outcome in ledger.outcomes():
            card.add(outcome)
            if outcome.record is not None:
                records.add(outcome.record)
                parquet.add(outcome.record)
            for line in outcome.audit:
                audit.add_json(line)
            for one in outcome.refused:
                kept_back.add(one)
        numbers, picture = card.numbers(), card.picture()
        for written in lists:
            written.finish()
    finally:
        for unfinished in lists:
            unfinished.drop()
    _write_left(out, left)
    content = {
        "format": FORMAT,
        "settings": dict(settings),
        **numbers,
        "reports": {"rows": left.counts["rows"], "usable": left.counts["reports"], "refused": _reasons(left.reports)},
        "unmatched": {side: sum(side in one for one in left.unmatched) for side in ("exam", "study")},
        "incomplete": len(left.incomplete),
        "folder": dict(sorted(left.files.items())),
    }
    write_all_whole({out / CARD: json.dumps(content, ensure_ascii=False, indent=2) + "\n", out / "card.png": picture})
    return content


def _remove_torn(out: Path) -> None:
    """Temporary files that a run left which was killed while it wrote them."""
    for name in _NAMES:
        for path in out.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


def _write_left(out: Path, left: LeftOver) -> None:
    """In an order that does not depend on how often the run was broken off."""
    rows: dict[str, Iterable[Mapping[str, object]]] = {
        "refused_reports.jsonl": left.reports,
        "unmatched.jsonl": sorted(left.unmatched, key=lambda row: (*row, *row.values())),
        "incomplete.jsonl": sorted(left.incomplete, key=lambda row: str(row["exam"])),
    }
    for name, lines in rows.items():
        write_whole(out / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines))


def _reasons(rows: Iterable[Mapping[str, str]]) -> dict[str, int]:
    return dict(sorted(Counter(row["reason"] for row in rows).items()))


class _ParquetList:
    """`ListFile` for Parquet: rows are written as they come and take their name when they are whole.

    Raises:
        ValueError: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise ValueError("Parquet needs pip install 'llava_ultra_ext[hospital]' (pyarrow).") from None
        texts = ("exam_id", "patient", "exam_date", "site", "modality", *TEXTS)
        columns = {**dict.fromkeys(texts, pa.string()), "image": pa.list_(pa.string())}
        self._schema = pa.schema({**columns, "near_duplicates": pa.list_(pa.int32())})
        self.path, self._partial, self._table = path, path.with_name(f".{path.name}.part"), pa.Table
        self._writer = pq.ParquetWriter(self._partial, self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """One more row."""
        self._rows.append(row)
        if len(self._rows) == _BATCH:
            self._write()

    def _write(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, self._schema))
        self._rows = []

    def finish(self) -> None:
        """Close it and give it its name."""
        self._write()
        self._writer.close()
        self._partial.replace(self.path)

    def drop(self) -> None:
        """Remove what is not finished."""
        self._writer.close()
        self._partial.unlink(missing_ok=True)
