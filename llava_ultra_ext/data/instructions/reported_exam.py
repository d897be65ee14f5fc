"""An exam with its report, as an instruction writer needs it; read from the list that ``import exams`` reads too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava_ultra_ext.data.exam import IMAGE_TOKEN, Exam
from llava_ultra_ext.data.languages import has_chinese, says_nothing
from llava_ultra_ext.data.sources.source import SPLITS, choice_field, text_field

SKIPPED = {
    "no_findings": "without findings (超声所见) there is nothing to describe, and nothing that a teacher could read",
    "no_pictures": "the exam has no frame",
    "not_chinese": "the findings hold no Chinese; the phrasings are Chinese",
    "repeated_exam": "an earlier record has the same exam id",
}
"""Reason not to make instructions of a good record -> what it means."""


@dataclass(frozen=True)
class ReportedExam:
    """What is known of an exam.

    Args:
        id: names it in files and lists: its exam id, or the record's id.
        images: k frames, relative to the image folder.
        findings: 超声所见.
        diagnosis: 诊断; empty: none is asked.
        site: its normalised name; empty: none is asked or named.
        modality: for example ``ultrasound``.
        split: of an official split; empty: none.
        valid_frames: 0-based, as in `Exam`.
    """

    id: str
    images: tuple[str, ...]
    findings: str
    diagnosis: str = ""
    site: str = ""
    modality: str = ""
    split: str = ""
    valid_frames: tuple[int, ...] | None = None


class Skip(Exception):
    """A record of which no instruction is made; its text is a key of `SKIPPED`."""


def read_exam(record: Any, position: int, modality: str) -> ReportedExam:
    """One record of a manifest.

    Args:
        record: as JSON gave it.
        position: its 0-based place.
        modality: of records that do not say theirs.

    Raises:
        ValueError: a fault of the record, which names it and quotes no text of it.
        Skip: a good record of which nothing can be asked.
    """
    given = record.get("exam_id") or record.get("id") if isinstance(record, Mapping) else None
    name = str(given) if isinstance(given, (str, int)) and str(given) else f"#{position}"
    place = f"sample {name}"
    texts = {key: text_field(record, key, place, default="") for key in ("findings", "diagnosis", "site", "modality")}
    split = choice_field(record, "split", place, SPLITS, default="")
    images = record.get("image")
    tokens = IMAGE_TOKEN * (len(images) if isinstance(images, list) else int(bool(images)))
    turns = [{"from": "human", "value": f"{tokens}\n?"}, {"from": "gpt", "value": "."}]
    checked = Exam.from_record({**record, "id": name, "conversations": turns}, position)
    if says_nothing(texts["findings"]):
        raise Skip("no_findings")
    if not checked.images:
        raise Skip("no_pictures")
    if not has_chinese(texts["findings"]):
        raise Skip("not_chinese")
    return ReportedExam(
        id=name,
        images=checked.images,
        findings=texts["findings"],
        diagnosis="" if says_nothing(texts["diagnosis"]) else texts["diagnosis"],
        site=texts["site"],
        modality=texts["modality"] or modality,
        split=split,
        valid_frames=checked.valid_frames,
    )
