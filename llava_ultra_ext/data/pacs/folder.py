"""Studies of DICOM files that lie in a folder already, such as an export or a disc."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from llava_ultra_ext.data.dicom.files import dicom_files
from llava_ultra_ext.data.dicom.refusal import Refused, refusing
from llava_ultra_ext.data.pacs.source import Failure, Fetched, Query, SourceError, Study, once
from llava_ultra_ext.data.pacs.spool import Spool

_READ = ("StudyInstanceUID", "SOPInstanceUID", "AccessionNumber", "StudyDate", "Modality")
_TAGS: list[Any] = [0x0020000D, 0x00080018, 0x00080050, 0x00080020, 0x00080060]  # of these


class _File(NamedTuple):
    path: Path
    study: Study
    instance: str


@dataclass
class FolderSource:
    """Files of a folder, grouped by study. Their headers are read once, when first asked.

    Args:
        folder: a tree, or its DICOMDIR.
    """

    folder: Path

    @cached_property
    def _index(self) -> tuple[list[_File], dict[Path, Refused]]:
        files: list[_File] = []
        refused: dict[Path, Refused] = {}
        try:
            for path in dicom_files(self.folder):
                try:
                    files.append(_read(path))
                except Refused as reason:
                    refused[path] = reason
        except (OSError, ValueError) as error:
            raise SourceError(str(error)) from None
        return files, refused

    @property
    def refused(self) -> dict[Path, Refused]:
        """File -> why it belongs to no study.

        Raises:
            SourceError: no such folder.
        """
        return self._index[1]

    @cached_property
    def _by_study(self) -> dict[tuple[str, str], dict[str, Path]]:
        found: dict[tuple[str, str], dict[str, Path]] = {}
        for file in self._index[0]:
            found.setdefault((file.study.uid, file.study.modality), {}).setdefault(file.instance, file.path)
        return found

    def studies(self, query: Query) -> Iterator[Study]:
        """Studies that match, in the order of their first files.

        Raises:
            SourceError: no such folder.
        """
        wanted = frozenset(query.accession_numbers)
        first, last = query.date_range.split("-") if query.dates else ("", "99999999")
        return once(
            file.study
            for file in self._index[0]
            if file.study.modality == query.modality
            and (not wanted or file.study.accession_number in wanted)
            and first <= file.study.date <= last
        )

    @property
    def total(self) -> int:
        """All files, DICOM or not."""
        return len(self._index[0]) + len(self._index[1])

    def outside(self, modality: str) -> Counter[str]:
        """How many files belong to no study of a modality: by `Refused.reason`, ``other_modality``, and ``copy``, the
        same instance under a second name."""
        found = Counter(reason.reason for reason in self.refused.values())
        of_it = sum(file.study.modality == modality for file in self._index[0])
        found["other_modality"] = len(self._index[0]) - of_it
        kept = sum(len(files) for (_, of), files in self._by_study.items() if of == modality)
        found["copy"] = of_it - kept
        return +found

    def every_study(self, modality: str) -> Iterator[Study]:
        """All studies with series of a modality, those without number or date too.

        Raises:
            SourceError: no such folder.
        """
        return once(file.study for file in self._index[0] if file.study.modality == modality)

    def files(self, study: Study) -> tuple[Path, ...]:
        """Where a study's files lie, each instance once; nothing is copied."""
        return tuple(self._by_study.get((study.uid, study.modality), {}).values())

    def fetch(self, study: Study, folder: Path) -> Fetched:
        """Copy what is missing. Files that a DICOMDIR lists and the folder lacks: `dicom.files.listed_but_absent`."""
        spool, failed = Spool(folder, study), []
        files = self._by_study.get((study.uid, study.modality), {})
        for uid in spool.missing(files):
            try:
                spool.store(uid, files[uid])
            except OSError as error:
                failed.append(Failure(spool.path(uid).stem, f"cannot be copied ({error.strerror})"))
        return spool.fetched(failed)


def _read(path: Path) -> _File:
    header = _header(path)
    uid, instance, number, day, modality = (str(header.get(keyword) or "").strip() for keyword in _READ)
    return _File(path, Study(uid, number, day, modality), instance)


def _behind_study(tag: Any, vr: str | None, length: int) -> bool:
    """Nothing that is wanted comes later, and elements stand in ascending order (PS3.5 7.1)."""
    return bool(tag > max(_TAGS))


def _header(path: Path) -> Any:
    from pydicom.filereader import read_partial

    with refusing("not_dicom", "the header cannot be read."):
        try:
            with path.open("rb") as file:
                header = read_partial(file, _behind_study, force=True, specific_tags=_TAGS)
        except OSError as error:
            raise Refused("unreadable_file", f"it cannot be opened ({error.strerror}).") from None
        if not header.get("StudyInstanceUID") or not header.get("SOPInstanceUID"):
            raise Refused("not_dicom", "it names no study or no instance. Leave it out.")
        return header
