"""One exam: its DICOM files become pictures without banners, its report a record without identifiers.

Everything that identifies stays in this process's memory: what it returns and writes holds pseudonyms, cleaned texts
and moved dates only.
"""

from __future__ import annotations

import datetime
import functools
import io
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_ultra_ext.data.deidentify.audit import Entry
from llava_ultra_ext.data.deidentify.headers import known_names
from llava_ultra_ext.data.deidentify.keys import PatientKey, Secret, load_secret
from llava_ultra_ext.data.deidentify.pixel_text import rapid_reader
from llava_ultra_ext.data.deidentify.pixels import clean_frames
from llava_ultra_ext.data.deidentify.quarantine import Quarantine
from llava_ultra_ext.data.deidentify.text import clean_text
from llava_ultra_ext.data.dicom.cine import choose_frames, uniform
from llava_ultra_ext.data.dicom.instance import Instance, open_instance
from llava_ultra_ext.data.dicom.refusal import Refused
from llava_ultra_ext.data.duplicates import near_duplicates
from llava_ultra_ext.data.reports.row import ReportRow
from llava_ultra_ext.data.sites import load_sites
from llava_ultra_ext.data.whole_file import write_whole

FORMATS = {"png": {"compress_level": 3}, "jpg": {"quality": 95, "subsampling": 0}}
"""Picture format -> how Pillow writes it. Our choice: level 3 of PNG, a third of level 6's time at 4 % more bytes."""

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
    work = _Work(task, settings, _secret(settings.secret))
    record: dict[str, Any] | None = None
    try:
        record = work.record()
    except Quarantine as reason:
        work.keep_back("", reason.reason)
    audit = [Entry(task.exam, step, counts).line() for step, counts in work.removed.items() if counts]
    return Outcome(task.exam, task.digest, record, tuple(audit), tuple(work.refused), len(task.files))


class _Work:
    """One exam while it is being done."""

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
        patient = self._patient([str(one.dataset.get("PatientID") or "").strip() for one in instances])
        names = {name for one in instances for name in known_names(one.dataset)}
        names |= {report.patient_name} if report.patient_name else set()
        images, copies = self._pictures(instances, sorted(names))
        if not images:
            return None
        texts = {}
        for name in ("findings", "diagnosis", "history"):
            cleaned = clean_text(getattr(report, name), patient.shift_days, names)
            texts[name] = cleaned.text
            self.removed["text"].update(cleaned.removed)
        return {
            "exam_id": self.task.exam,
            "patient": patient.pseudonym,
            "exam_date": _moved(report.exam_date or _study_date(instances), patient.shift_days),
            "site": load_sites(self.settings.sites).normalise(report.site),
            "modality": self.settings.modality,
            "image": images,
            "near_duplicates": copies,
            **texts,
        }

    def _instances(self) -> list[Instance]:
        """Readable files in the order of their series and numbers, which is that of the examination."""
        found: list[tuple[tuple[int, int, str], Instance]] = []
        for file in self.task.files:
            try:
                one = open_instance(file)
            except Refused as reason:
                self.keep_back("", reason.reason)
                continue
            numbers = [_number(one.dataset.get(keyword)) for keyword in ("SeriesNumber", "InstanceNumber")]
            found.append(((numbers[0], numbers[1], str(one.dataset.get("SOPInstanceUID", ""))), one))
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]

    def _patient(self, ids: Sequence[str]) -> PatientKey:
        """Of the report, else of the files; all that are given must agree, else someone else's pictures came along."""
        given = {self.secret.pseudonym("patient", one): one for one in (self.task.report.patient_id, *ids) if one}
        if len(given) > 1:
            raise Quarantine("several_patients")
        if not given:
            raise Quarantine("no_patient_id")
        return self.secret.patient(*given.values())

    def _pictures(self, instances: Sequence[Instance], names: Sequence[str]) -> tuple[list[str], list[int | None]]:
        """Names of the pictures, and for each the earlier one that looks the same."""
        images: list[str] = []
        written = self._written(instances, names, images)
        return images, near_duplicates(written)

    def _written(self, instances: Sequence[Instance], names: Sequence[str], images: list[str]) -> Iterator[Image.Image]:
        for one in instances:
            for picture in self._cleaned(one, names):
                name = f"images/{self.task.exam[:2]}/{self.task.exam}/{len(images):04d}.{self.settings.picture_format}"
                write_whole(self.settings.out / name, _encoded(picture, self.settings.picture_format))
                images.append(name)
                yield picture

    def _cleaned(self, one: Instance, names: Sequence[str]) -> list[Image.Image]:
        """A file's frames without banners; a file that has a fault gives none, and is listed."""
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
        self.keep_back(self.secret.pseudonym("instance", str(one.dataset.get("SOPInstanceUID", ""))), reason)
        return []

    def _frames(self, one: Instance) -> np.ndarray:
        """(k, H, W, 3); by the rule of the settings."""
        most, rule = self.settings.frames_per_cine, self.settings.cine_rule
        frames = np.stack(list(one.frames(uniform(one.shape[0], most))))
        if rule == "uniform" or one.shape[0] <= most:
            return frames
        scan = clean_frames(frames, one.dataset).box  # a clock beside the scan is no change of it
        return np.stack(list(one.frames(choose_frames(one, most, rule, scan))))


@functools.lru_cache(maxsize=1)
def _secret(file: Path | None) -> Secret:
    return load_secret(file)


def _picture(frame: np.ndarray) -> Image.Image:
    """Grey where no colour is shown: a third of the bytes, and readers turn it into RGB as they do any picture."""
    picture = Image.fromarray(np.ascontiguousarray(frame))
    red, green, blue = (channel.tobytes() for channel in picture.split())
    return picture.getchannel(0) if red == green == blue else picture


def _encoded(picture: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG" if kind == "jpg" else "PNG", **FORMATS[kind])
    return out.getvalue()


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def _study_date(instances: Sequence[Instance]) -> datetime.date | None:
    for one in instances:
        try:
            return datetime.datetime.strptime(str(one.dataset.get("StudyDate", "")).strip(), "%Y%m%d").date()
        except ValueError:
            continue
    return None


def _moved(day: datetime.date | None, shift: int) -> str:
    """As 2024-01-31; empty when unknown."""
    try:
        return (day + datetime.timedelta(days=shift)).isoformat() if day else ""
    except OverflowError:
        return ""
