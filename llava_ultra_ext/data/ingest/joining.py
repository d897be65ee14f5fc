"""Reports and studies meet by accession number (0008,0050); what is left over on either side is listed.

Reports come in the order of their numbers and are not held. Studies are listed once where that is possible: those of a
folder, or of the given dates; else the archive is asked for each report's number.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from datetime import date
from pathlib import Path
from typing import TypeVar

from llava_ultra_ext.data.deidentify.keys import Secret
from llava_ultra_ext.data.ingest.ledger import Ledger
from llava_ultra_ext.data.ingest.one_exam import Task
from llava_ultra_ext.data.pacs.folder import FolderSource
from llava_ultra_ext.data.pacs.source import Query, Source, Study
from llava_ultra_ext.data.reports.row import RefusedRow, ReportRow

MODALITY = "US"
"""Of the series that are wanted, (0008,0060)."""

_T = TypeVar("_T")
_ASKED = 50  # reports whose studies are asked for together
_LOGGER = logging.getLogger(__name__)


@dataclass
class LeftOver:
    """What did not become a task; every line is free of identifiers.

    Args:
        reports: rows of the database that cannot be used: ``{place, reason, exam}``.
        unmatched: ``{exam}`` of reports without a study, ``{study}`` of studies without a report.
        incomplete: ``{exam, missing, reason}`` of exams that were not fetched whole; the next run asks for them again.
        counts: ``rows``, ``reports`` (usable), ``finished_before``, ``studies`` (that were listed).
        files: of a folder: how many belong to exams, and to no exam by the reason.
    """

    reports: list[dict[str, str]] = field(default_factory=list)
    unmatched: list[dict[str, str]] = field(default_factory=list)
    incomplete: list[dict[str, object]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)


@dataclass
class Joining:
    """Tasks from reports and a source.

    Args:
        source: of DICOM files.
        dates: first and last study date; None: any.
        spool: where fetched files lie until their exam is finished.
        secret: the hospital's.
        ledger: of finished exams, which are passed over.
    """

    source: Source
    dates: tuple[date, date] | None
    spool: Path
    secret: Secret
    ledger: Ledger
    left: LeftOver = field(default_factory=LeftOver)

    def tasks(self, rows: Iterable[ReportRow | RefusedRow]) -> Iterator[Task]:
        """An exam for each usable report that has a study and is not finished; `left` is whole when they end.

        Raises:
            SourceError: the source does not answer, after all retries.
            OSError: the spool cannot be written.
        """
        listed = self._listed()
        for chunk in _chunks(self._usable(rows), _ASKED):
            found = listed if listed is not None else self._asked([row.accession_number for row in chunk])
            for row in chunk:
                # Taken out: what is left in the end has no report.
                yield from self._task(row, found.pop(row.accession_number, []))
        for study in itertools.chain.from_iterable((listed or {}).values()):
            self.left.unmatched.append({"study": self.secret.pseudonym("study", study.uid)})
            self._count("without_report", [study])
        if isinstance(self.source, FolderSource):
            self._account(self.source)

    def finish(self, exam: str) -> None:
        """Remove what was fetched for an exam, which is safe in the ledger now."""
        for folder in self._fetched.pop(exam, ()):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def withdrawn(self) -> frozenset[str]:
        """Exams whose report has a row, of which none can be used; an earlier version may not stand for it."""
        return frozenset(self._refused)

    _refused: set[str] = field(default_factory=set, repr=False)
    _fetched: dict[str, list[Path]] = field(default_factory=dict, repr=False)

    def _usable(self, rows: Iterable[ReportRow | RefusedRow]) -> Iterator[ReportRow]:
        for row in rows:
            self.left.counts["rows"] += 1
            if isinstance(row, ReportRow):
                self.left.counts["reports"] += 1
                if self._refused:
                    self._refused.discard(self.secret.pseudonym("accession", row.accession_number))
                yield row
            else:
                exam = self.secret.pseudonym("accession", row.accession_number) if row.accession_number else ""
                self.left.reports.append({"place": row.place, "reason": row.reason, "exam": exam})
                self._refused.update({exam} - {""})

    def _listed(self) -> dict[str, list[Study]] | None:
        """Accession number -> studies, of everything that the source has; None: it must be asked by number."""
        if isinstance(self.source, FolderSource) and self.dates is None:
            return self._by_number(self.source.every_study(MODALITY))
        if self.dates is None:
            return None
        return self._by_number(self.source.studies(Query(dates=self.dates, modality=MODALITY)))

    def _asked(self, numbers: Sequence[str]) -> dict[str, list[Study]]:
        plain = [number for number in numbers if not set(number) & set("*?\\")]  # DICOM has no way to quote them
        return self._by_number(self.source.studies(Query(plain, modality=MODALITY))) if plain else {}

    def _by_number(self, studies: Iterable[Study]) -> dict[str, list[Study]]:
        found: dict[str, list[Study]] = {}
        for study in studies:
            self.left.counts["studies"] += 1
            found.setdefault(study.accession_number, []).append(study)
        return found

    def _task(self, row: ReportRow, studies: Sequence[Study]) -> Iterator[Task]:
        exam = self.secret.pseudonym("accession", row.accession_number)
        self._count("of_exams", studies)
        if not studies:
            self.left.unmatched.append({"exam": exam})
            return
        digest = self.secret.pseudonym("report", json.dumps(astuple(row), default=str))
        if self.ledger.has(exam, digest):
            self.left.counts["finished_before"] += 1
            return
        files, missing, reason = self._files(exam, studies)
        if missing:
            self.left.incomplete.append({"exam": exam, "missing": missing, "reason": reason})
            _LOGGER.warning("exam %s was not fetched whole (%s); the next run asks for it again", exam, reason)
            return
        yield Task(exam, digest, row, files)

    def _account(self, folder: FolderSource) -> None:
        """Every file of the folder is counted once: what was not listed has another date."""
        self.left.files += folder.outside(MODALITY)
        self.left.files["other_date"] = folder.total - sum(self.left.files.values())
        self.left.files = +self.left.files

    def _count(self, where: str, studies: Iterable[Study]) -> None:
        if isinstance(self.source, FolderSource):
            self.left.files[where] += sum(len(self.source.files(study)) for study in studies)

    def _files(self, exam: str, studies: Sequence[Study]) -> tuple[tuple[Path, ...], int, str]:
        """All files of an exam, how many failed to come, and why."""
        files: list[Path] = []
        missing, reason = 0, ""
        for study in studies:
            if isinstance(self.source, FolderSource):  # they lie there already
                files += self.source.files(study)
                continue
            fetched = self.source.fetch(study, self.spool)
            self._fetched.setdefault(exam, []).append(self.spool / study.key)
            files += fetched.files
            missing += len(fetched.failed)
            reason = fetched.failed[0].reason if fetched.failed else reason
        return tuple(files), missing, reason


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
