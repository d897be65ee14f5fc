"""Which exams are finished, with what became of them: one SQLite file, so that a run that was killed goes on.

It holds pseudonyms and clean records only. An exam is in it whole or not at all, and at most once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.ingest.one_exam import Outcome

FORMAT = "ultra_ingest/1"
"""Raise the number when the same input gives other bytes: output of both is never mixed."""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS exams (exam TEXT PRIMARY KEY, digest TEXT NOT NULL, record TEXT, audit TEXT NOT NULL,"
    " refused TEXT NOT NULL, files INTEGER NOT NULL) WITHOUT ROWID",
)


class Ledger:
    """The file; used by one process.

    Args:
        path: where it lies; made where absent.
        settings: name -> value, everything that decides the bytes of the output.

    Raises:
        ValueError: it was begun with other settings, or is no such file.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            self._database = sqlite3.connect(path, timeout=0.5)
            # Before WAL: only so is the file locked when it is opened, and not with the first exam.
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            # A kill loses nothing with this; a power cut at most the last exams, which are then done again.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            with self._database:
                for table in _TABLES:
                    self._database.execute(table)
            self._check(settings)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ValueError(f"--out {path.parent.parent}: another ingest is writing there. Wait for it.") from None
            raise OSError(f"{path}: cannot be opened or written ({error}).") from None
        except sqlite3.DatabaseError:
            raise ValueError(f"{path}: is no ledger of an ingest. Give another --out.") from None

    def _check(self, settings: Mapping[str, Any]) -> None:
        wanted = {name: json.dumps(value) for name, value in {"format": FORMAT, **settings}.items()}
        found = dict(self._database.execute("SELECT name, value FROM settings"))
        if not found:
            with self._database:
                self._database.executemany("INSERT INTO settings VALUES (?, ?)", wanted.items())
            return
        differing = [
            f"{name} {found.get(name)} there, {wanted.get(name)} here"
            for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)
        ]
        if differing:
            self.close()
            raise ValueError(
                f"--out {self._path.parent.parent}: was begun with other settings: {'; '.join(differing)}. "
                "Give those, or another folder."
            )

    def has(self, exam: str, digest: str) -> bool:
        """Whether an exam is finished, from this very report."""
        row = self._database.execute("SELECT digest FROM exams WHERE exam = ?", (exam,)).fetchone()
        return row is not None and row[0] == digest

    def drop(self, exam: str) -> bool:
        """Forget an exam, whose report was withdrawn; whether it was there."""
        return self._changed("DELETE FROM exams WHERE exam = ?", (exam,)) > 0

    def add(self, outcome: Outcome) -> None:
        """A finished exam; it takes the place of one from an earlier version of its report.

        Raises:
            OSError: it cannot be written.
        """
        record = None if outcome.record is None else _json(outcome.record)
        row = (outcome.exam, outcome.digest, record, "\n".join(outcome.audit), _json(outcome.refused), outcome.files)
        self._changed("INSERT OR REPLACE INTO exams VALUES (?, ?, ?, ?, ?, ?)", row)

    def _changed(self, statement: str, values: tuple[Any, ...]) -> int:
        try:
            with self._database:
                return self._database.execute(statement, values).rowcount
        except sqlite3.OperationalError as error:
            raise OSError(f"{self._path}: cannot be written ({error}). Finished exams are kept.") from None

    def outcomes(self) -> Iterator[Outcome]:
        """Every finished exam, in the order of pseudonyms."""
        rows = self._database.execute("SELECT exam, digest, record, audit, refused, files FROM exams ORDER BY exam")
        for exam, digest, record, audit, refused, files in rows:
            lines = tuple(audit.split("\n")) if audit else ()
            clean = None if record is None else json.loads(record)
            yield Outcome(exam, digest, clean, lines, tuple(json.loads(refused)), files)

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM exams").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
