"""What every source of DICOM files offers: list studies, fetch one study into the spool.

Accession numbers and UIDs identify a patient, so they stand in these records only; logs, errors and file names hold a
study's or an instance's `key`, a digest of its UID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Protocol, TypeVar

_T = TypeVar("_T")


def key_of(uid: str) -> str:
    """A file name for a UID: 24 hexadecimal digits of its SHA-256. A UID is too long to be guessed from it."""
    return hashlib.sha256(uid.strip().encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Query:
    """Which studies are wanted.

    Args:
        accession_numbers: of (0008,0050); empty: any.
        dates: first and last Study Date (0008,0020), both included; None: any.
        modality: of (0008,0060), one of the study's series; only such series are fetched.

    Raises:
        ValueError: neither accession numbers nor dates, which would ask for the whole archive; a wildcard, which would
            ask for more than was named; or dates that run backwards.
    """

    accession_numbers: Sequence[str] = ()
    dates: tuple[date, date] | None = None
    modality: str = "US"

    def __post_init__(self) -> None:
        if not self.accession_numbers and self.dates is None:
            raise ValueError("a query needs accession numbers or two dates; an empty one asks for the whole archive.")
        if self.dates is not None and self.dates[0] > self.dates[1]:
            raise ValueError(f"dates {self.dates[0]} to {self.dates[1]}: the first must not be later. Swap them.")
        bad = [index for index, number in enumerate(self.accession_numbers) if not number or set(number) & set("*?\\")]
        if bad:
            raise ValueError(f"accession number {bad[0] + 1} is empty or holds one of * ? \\. Give whole numbers.")

    @property
    def date_range(self) -> str:
        """As DICOM writes it (PS3.4 C.2.2.2.5): ``20240101-20240131``, or empty."""
        return "-".join(f"{day:%Y%m%d}" for day in self.dates) if self.dates else ""

    def matchings(self) -> Iterator[dict[str, str]]:
        """Keyword -> value for each request: one an accession number, or a single one."""
        for number in self.accession_numbers or ("",):
            yield {"AccessionNumber": number, "StudyDate": self.date_range, "ModalitiesInStudy": self.modality}


@dataclass(frozen=True)
class Study:
    """A study as its source describes it.

    Args:
        uid: Study Instance UID (0020,000D).
        accession_number: (0008,0050); empty when unknown.
        date: (0008,0020), ``20240131``; empty when unknown.
        modality: whose series are fetched.
    """

    uid: str
    accession_number: str = field(default="", repr=False)
    date: str = field(default="", repr=False)
    modality: str = "US"

    @property
    def key(self) -> str:
        """Names the study in the spool and in logs."""
        return key_of(self.uid)


@dataclass(frozen=True)
class Failure:
    """An instance that was not fetched.

    Args:
        instance: its `key_of`; empty when the study's instances could not be listed.
        reason: what went wrong; names no patient.
    """

    instance: str
    reason: str


@dataclass(frozen=True)
class Fetched:
    """What became of a study.

    Args:
        study: its `key`.
        files: of all its instances in the spool, sorted.
        new: how many of them came with this fetch.
        failed: what is missing; fetching again asks for these only.
    """

    study: str
    files: tuple[Path, ...] = ()
    new: int = 0
    failed: tuple[Failure, ...] = ()


class Source(Protocol):
    """A folder, a DICOMweb server or a DIMSE archive."""

    def studies(self, query: Query) -> Iterator[Study]:
        """Each study that matches, once.

        Raises:
            SourceError: the source does not answer, after all retries.
        """
        ...

    def fetch(self, study: Study, folder: Path) -> Fetched:
        """Bring what is missing of a study into ``folder/study.key/instance-key.dcm``; never raises for one study."""
        ...


class SourceError(RuntimeError):
    """A source that does not answer, or answers with an error; the message names no patient."""


def once(studies: Iterable[Study]) -> Iterator[Study]:
    """Each study of a chain once: two accession numbers may be of one study."""
    seen: set[str] = set()
    for study in studies:
        if study.uid and study.uid not in seen:
            seen.add(study.uid)
            yield study


def chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """`size` items at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
