"""Training records of what was written, in both versions of the paper: site cue in the question, site in the answer.

The version comes from ``site_cue``, as in ``import exams``. Our choice: the question for the site is never given the
cue, for then it would hold its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from llava_ultra_ext.data.exam import IMAGE_TOKEN, Exam
from llava_ultra_ext.data.instructions.reported_exam import ReportedExam
from llava_ultra_ext.data.instructions.written import Asked, Written
from llava_ultra_ext.data.sources.site_cue import drop_site, name_site
from llava_ultra_ext.data.sources.source import Item

STAGES = ("stage1", "stage2")

CUES = {"with_site": name_site, "without_site": drop_site}
"""Version, as the folders of ``import exams`` are called -> what makes it."""


def records(exam: ReportedExam, written: Written, version: str) -> tuple[dict[str, dict[str, Any]], Counter[str]]:
    """The record of each stage.

    Args:
        exam: the exam.
        written: its instructions.
        version: a key of `CUES`.

    Returns:
        Stage -> record of LLaVA's training list, checked; and counts of what was done to questions and answers.

    Raises:
        BadSample: a record that `Exam` would not take.
    """
    counts: Counter[str] = Counter()
    found = {}
    for stage, asked in zip(STAGES, ((written.simple,), written.conversation), strict=True):
        pairs = _cued(exam, asked, version, counts)
        found[stage] = _record(exam, pairs, f"{exam.id}-{stage}")
    return found, counts


def _cued(exam: ReportedExam, asked: Sequence[Asked], version: str, counts: Counter[str]) -> list[tuple[str, str]]:
    items = [
        Item(str(number), exam.id, exam.images, one.question, one.answer, "zh", "OPEN", site=exam.site)
        for number, one in enumerate(asked)
    ]
    free = {item.id for item, one in zip(items, asked, strict=True) if one.topic == "site"}
    changed, done = CUES[version]([item for item in items if item.id not in free])
    counts.update(done)
    cued = {item.id: item for item in changed}
    return [(cued.get(item.id, item).question, cued.get(item.id, item).answer) for item in items]


def _record(exam: ReportedExam, pairs: Sequence[tuple[str, str]], name: str) -> dict[str, Any]:
    turns = []
    for number, (question, answer) in enumerate(pairs):
        tokens = f"{IMAGE_TOKEN}\n" * len(exam.images) if number == 0 else ""
        turns += [{"from": "human", "value": tokens + question}, {"from": "gpt", "value": answer}]
    record: dict[str, Any] = {
        "id": name,
        "exam_id": exam.id,
        "image": exam.images[0] if len(exam.images) == 1 else list(exam.images),
        "findings": exam.findings,
    }
    known = {"site": exam.site, "modality": exam.modality, "split": exam.split}
    record |= {key: value for key, value in known.items() if value}
    if exam.valid_frames is not None:
        record["valid_frames"] = list(exam.valid_frames)
    record["conversations"] = turns
    Exam.from_record(record)
    return record
