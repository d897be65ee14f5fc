"""A training set of its own that a test may spoil, and teacher scores for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.frame_scores import FrameScoreWriter, Header, data_fingerprint, merge_parts

Flags = dict[str, Any]
EXAM = 3
"""The place in the list of records of an exam of four frames; `case` checks it."""


@dataclass
class Case:
    """A training set of its own that a test may spoil."""

    folder: Path
    flags: Flags
    records: list[dict[str, Any]]

    def picture(self, frame: int = 1) -> Path:
        return self.folder / self.records[EXAM]["image"][frame]

    def save(self) -> None:
        (self.folder / "train.json").write_text(json.dumps(self.records, ensure_ascii=False), encoding="utf-8")


def scores_file(case: Case, model: str | None = None, data: str | None = None) -> None:
    """Scores for the exams of the case, of the given model and data (default: those in use)."""
    exams = [Exam.from_record(record) for record in case.records]
    header = Header(model or "any", data or data_fingerprint(exams))
    path = case.folder / "scores.jsonl"
    with FrameScoreWriter(path, header) as writer:
        for exam in exams:
            writer.write(exam.score_key, exam.images, [-float(i) for i in range(len(exam.images))])
    merge_parts(path)
    case.flags["frame_scores"] = path
