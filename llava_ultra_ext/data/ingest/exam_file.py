"""A DICOM file of an exam: its frames, and what its header says about patient, staff and order.

All of it identifies; it stays in the memory of the process that does the exam.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, NamedTuple

from llava_ultra_ext.data.deidentify.headers import known_names
from llava_ultra_ext.data.dicom.header import ULTRASOUND, Limits
from llava_ultra_ext.data.dicom.instance import Instance, open_instance
from llava_ultra_ext.data.dicom.refusal import Refused, refusing

_DEFAULT_LIMITS = Limits()

OWN_NUMBERS = ("PatientID", "AccessionNumber", "OtherPatientIDs", "AdmissionID", "StudyID")
"""Of a header: numbers that a report may name without saying that it does."""


class ExamFile(NamedTuple):
    """A file whose header could be read, and what is wanted of it; all of it identifies.

    Args:
        instance: its frames.
        order: number of the series, of the instance, and SOP Instance UID.
        patient: PatientID, empty where there is none.
        numbers: that `OWN_NUMBERS` hold.
        names: of patient and staff.
        day: of the study.
    """

    instance: Instance
    order: tuple[int, int, str]
    patient: str
    numbers: tuple[str, ...]
    names: tuple[str, ...]
    day: datetime.date | None


def open_exam_file(file: Path | bytes, limits: Limits = _DEFAULT_LIMITS) -> ExamFile:
    """Every value is read here: pydicom converts late, and a broken one may raise anything.

    Args:
        file: the file, or its bytes.
        limits: what it may claim.

    Raises:
        Refused: it gives no frames.
    """
    one = open_instance(file, ULTRASOUND, limits)
    with refusing("broken_header", "the header cannot be read. Export the file again."):
        header = one.dataset
        series, number = (_number(header.get(keyword)) for keyword in ("SeriesNumber", "InstanceNumber"))
        uid = _texts(header.get("SOPInstanceUID"))
        return ExamFile(
            one,
            (series, number, uid[0] if uid else getattr(file, "name", "")),
            "\\".join(_texts(header.get("PatientID"))),
            tuple(text for keyword in OWN_NUMBERS for text in _texts(header.get(keyword))),
            known_names(header),
            _day(header.get("StudyDate")),
        )


def instance_uid(file: Path) -> str:
    """Of a file that gives no frames; its name where that cannot be read either."""
    from pydicom import dcmread

    try:
        with refusing("broken_header", "the header cannot be read."):
            header = dcmread(file, force=True, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
            return _texts(header.get("SOPInstanceUID"))[0]
    except Refused:
        return file.name


def _texts(value: Any) -> list[str]:
    """The values of an element that are not empty; padding is none."""
    values = [value] if value is None or isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    return [text for one in values if (text := str("" if one is None else one).strip().strip(" \0"))]


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def _day(value: Any) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(str(value).strip(), "%Y%m%d").date()
    except ValueError:
        return None
