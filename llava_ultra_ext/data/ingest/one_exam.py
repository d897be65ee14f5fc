"""One exam: its DICOM files become pictures without banners, its report a record without identifiers.

Everything that identifies stays in this process's memory: what it returns and writes holds pseudonyms, cleaned texts
and moved dates only.
"""

from __future__ import annotations

import datetime
import functools
import io
import logging
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_ultra_ext.data.deidentify.audit import Entry
from llava_ultra_ext.data.deidentify.keys import PatientKey, Secret, load_secret
from llava_ultra_ext.data.deidentify.pixel_text import rapid_reader
from llava_ultra_ext.data.deidentify.pixels import clean_frames, scan_box
from llava_ultra_ext.data.deidentify.quarantine import Quarantine
from llava_ultra_ext.data.deidentify.text import SHORTEST_NUMBER, clean_text
from llava_ultra_ext.data.dicom.cine import choose_frames, uniform
from llava_ultra_ext.data.dicom.colours import grey_of, stacked
from llava_ultra_ext.data.dicom.instance import Instance
from llava_ultra_ext.data.dicom.refusal import Refused
from llava_ultra_ext.data.duplicates import near_duplicates
from llava_ultra_ext.data.ingest.exam_file import ExamFile, instance_uid, open_exam_file
from llava_ultra_ext.data.reports.row import ReportRow
from llava_ultra_ext.data.sites import load_sites
from llava_ultra_ext.data.whole_file import write_whole

FORMATS = {"png": {"compress_level": 3}, "jpg": {"quality": 95, "subsampling": 0}}
"""Picture format -> how Pillow writes it. Our choice: level 3 of PNG, a third of level 6's time at 4 % more bytes."""

TEXTS = ("findings", "diagnosis", "history")
"""Free texts of a report, each cleaned."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of the output, beside the input.

    Args:
        out: the output folder; pictures go into its ``images``.
        secret: file of the hospital's secret; None: of the environment.
        sites: a user's own dictionary of sites.
        modality: that records carry.
        frames_per_cine: most frames of a multi-frame file.
        cine_rule: one of `cine.RULES`.
        picture_format: a key of `FORMATS`.
        read_text: look for text that was left in pictures; needs the extra ``[ocr]``.
    """

    out: Path
    secret: Path | None = field(default=None, repr=False)
    sites: str | None = None
    modality: str = "ultrasound"
    frames_per_cine: int = 8
    cine_rule: str = "uniform"
    picture_format: str = "png"
    read_text: bool = False


@dataclass(frozen=True)
class Task:
    """One exam to do.

    Args:
        exam: its pseudonym.
        digest: of its report under the secret; another one means that the report has changed.
        report: as the database gave it.
        files: its DICOM files.
    """

    exam: str
    digest: str
    report: ReportRow = field(repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Outcome:
    """What became of an exam; no part of it identifies.

    Args:
        exam, digest: of the task.
        record: as `output` lists it; None: nothing of the exam can be passed on.
        audit: lines of the audit.
        refused: of each file, or of the exam, that was kept back: ``{exam, instance, reason}``.
        files: how many DICOM files it had.
    """

    exam: str
    digest: str
    record: dict[str, Any] | None
    audit: tuple[str, ...] = ()
    refused: tuple[dict[str, str], ...] = ()
    files: int = 0


def ingest_exam(task: Task, settings: Settings) -> Outcome:
    """Clean an exam and write its pictures; the same task gives the same bytes.

    Raises:
        OSError: a picture cannot be written, such as on a full disk. Anything wrong with the exam is in the outcome.
    """
    from pydicom.config import disable_value_validation

    work = _Work(task, settings, _secret(settings.secret))
    record: dict[str, Any] | None = None
    try:
        with warnings.catch_warnings(), disable_value_validation():  # what is not used need not be valid
            warnings.simplefilter("ignore")  # pydicom's quote values of the header
            record = work.record()
    except Quarantine as reason:
        work.keep_back("", reason.reason)
    _keep_only(settings.out / folder_of(task.exam), [] if record is None else record["image"])
    audit = [Entry(task.exam, step, counts).line() for step, counts in work.removed.items() if counts]
    return Outcome(task.exam, task.digest, record, tuple(audit), tuple(work.refused), len(task.files))


class _Work:
    """One exam while it is being done; `record` may be called once."""

    def __init__(self, task: Task, settings: Settings, secret: Secret) -> None:
        self.task, self.settings, self.secret = task, settings, secret
        self.refused: list[dict[str, str]] = []
        self.removed: dict[str, Counter[str]] = {"text": Counter(), "pixels": Counter()}
        self._reader = rapid_reader() if settings.read_text else None

    def keep_back(self, instance: str, reason: str) -> None:
        """A file, or with an empty instance the exam, that is not passed on."""
        self.refused.append({"exam": self.task.exam, "instance": instance, "reason": reason})

    def record(self) -> dict[str, Any] | None:
        """The exam's record; None where no frame is left.

        Raises:
            Quarantine: the exam as a whole cannot be made safe.
        """
        report, instances = self.task.report, self._instances()
        if not instances:
            return None
        patient = self._patient([one.patient for one in instances])
        names = {name for one in instances for name in one.names} | {report.patient_name}
        numbers = {number for one in instances for number in one.numbers} | {report.patient_id, report.accession_number}
        images, copies = self._pictures(
            instances, sorted((names | {number for number in numbers if len(number) >= SHORTEST_NUMBER}) - {""})
        )
        if not images:
            return None
        day = next((one.day for one in instances if one.day), None)
        texts = {}
        for name in TEXTS:
            cleaned = clean_text(getattr(report, name), patient.shift_days, names, numbers)
            texts[name] = cleaned.text
            self.removed["text"].update(cleaned.removed)
        return {
            "exam_id": self.task.exam,
            "patient": patient.pseudonym,
            "exam_date": _moved(report.exam_date or day, patient.shift_days),
            "site": load_sites(self.settings.sites).normalise(report.site),
            "modality": self.settings.modality,
            "image": images,
            "near_duplicates": copies,
            **texts,
        }

    def _instances(self) -> list[ExamFile]:
        """Readable files in the order of their series and numbers, which is that of the examination."""
        found: list[ExamFile] = []
        for file in self.task.files:
            try:
                found.append(open_exam_file(file))
            except Refused as reason:
                self.keep_back(self._instance(instance_uid(file)), reason.reason)
        return sorted(found, key=lambda one: one.order)

    def _instance(self, uid: str) -> str:
        return self.secret.pseudonym("instance", uid)

    def _patient(self, ids: Sequence[str]) -> PatientKey:
        """Of the report, else of the files; all that are given must agree, else someone else's pictures came along."""
        given = {self.secret.pseudonym("patient", one): one for one in (self.task.report.patient_id, *ids) if one}
        if len(given) > 1:
            raise Quarantine("several_patients")
        if not given:
            raise Quarantine("no_patient_id")
        return self.secret.patient(*given.values())

    def _pictures(self, instances: Sequence[ExamFile], names: Sequence[str]) -> tuple[list[str], list[int | None]]:
        """Names of the pictures, and for each the earlier one that looks the same."""
        images: list[str] = []
        written = self._written(instances, names, images)
        return images, near_duplicates(written)

    def _written(self, instances: Sequence[ExamFile], names: Sequence[str], images: list[str]) -> Iterator[Image.Image]:
        for one in instances:
            for picture in self._cleaned(one, names):
                name = f"{folder_of(self.task.exam)}/{len(images):04d}.{self.settings.picture_format}"
                write_whole(self.settings.out / name, _encoded(picture, self.settings.picture_format))
                images.append(name)
                yield picture

    def _cleaned(self, file: ExamFile, names: Sequence[str]) -> list[Image.Image]:
        """A file's frames without banners; a file that has a fault gives none, and is listed."""
        one = file.instance
        try:
            cleaned = clean_frames(self._frames(one), one.dataset, names, self._reader)
        except (Refused, Quarantine) as fault:
            reason = fault.reason
        except Exception as error:  # a broken file must not end the run; the error's text may quote it
            _LOGGER.warning("a file of exam %s was kept back (%s)", self.task.exam, type(error).__name__)
            reason = "unexpected_error"
        else:
            self.removed["pixels"].update(cleaned.removed)
            left, top, right, bottom = cleaned.box
            return [_picture(frame[top:bottom, left:right]) for frame in cleaned.frames]
        self.keep_back(self._instance(file.order[2]), reason)
        return []

    def _frames(self, one: Instance) -> np.ndarray:
        """(k, H, W, 3); by the rule of the settings."""
        most, rule = self.settings.frames_per_cine, self.settings.cine_rule
        frames = stacked(one.frames(uniform(one.shape[0], most)))
        if rule == "uniform" or one.shape[0] <= most:
            return frames
        scan = scan_box(frames, one.dataset)  # a clock beside the scan is no change of it
        return stacked(one.frames(choose_frames(one, most, rule, scan)))


def folder_of(exam: str) -> str:
    """Of an exam's pictures, below the output folder."""
    return f"images/{exam[:2]}/{exam}"


def _keep_only(folder: Path, images: Sequence[str]) -> None:
    """Remove pictures of an earlier version of the exam, and what a run that was killed left."""
    if not images:
        shutil.rmtree(folder, ignore_errors=True)
        return
    names = {Path(name).name for name in images}
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink(missing_ok=True)


@functools.lru_cache(maxsize=1)
def _secret(file: Path | None) -> Secret:
    return load_secret(file)


def _picture(frame: np.ndarray) -> Image.Image:
    """Grey where no colour is shown: a third of the bytes, and readers turn it into RGB as they do any picture."""
    grey = grey_of(frame)
    if grey is not None:
        return Image.fromarray(np.ascontiguousarray(grey))
    picture = Image.fromarray(np.ascontiguousarray(frame))
    red, green, blue = (channel.tobytes() for channel in picture.split())
    return picture.getchannel(0) if red == green == blue else picture


def _encoded(picture: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG" if kind == "jpg" else "PNG", **FORMATS[kind])
    return out.getvalue()


def _moved(day: datetime.date | None, shift: int) -> str:
    """As 2024-01-31; empty when unknown."""
    try:
        return (day + datetime.timedelta(days=shift)).isoformat() if day else ""
    except OverflowError:
        return ""
