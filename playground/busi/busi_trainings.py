"""Rows of the check: the ablation's trainings, on exams of BUSI and with foundation models that were made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import exam_data
import measures
from llava_ultra_ext.data.frame_scores import read_frame_scores
from llava_ultra_ext.eval.closed import same_answer
from rows import Row
from steps import read_json
from trainings import Setup, Trainings

ROWS = {"likelihood": "best", "first": "first", "swapped": "best_swapped", "attention": "full"}
"""Name in the check -> row of the ablation."""


@dataclass(frozen=True)
class BusiSetup(Setup):
    """Where everything is.

    Args:
        given: a folder with clip, sam and llama, of playground/models/make.py.
        settings: what the exams were made with; a row is not mixed with another one's.
    """

    given: Path
    settings: Mapping[str, Any]

    @property
    def phantom(self) -> Path:
        return self.out / "pictures"

    @property
    def models(self) -> Path:
        return self.given


class BusiTrainings(Trainings):
    """Stage 1, teacher's scores, stage 2 and answers as in the ablation; other figures."""

    setup: BusiSetup

    def _shared(self) -> dict[str, Any]:
        return {**super()._shared(), "busi": self.setup.settings}

    def _compute(self, row: Row, folder: Path, seed: int) -> dict[str, Any]:
        ran = self._run(row, folder, seed)
        found: dict[str, Any] = {"exams": measures.exam_choices(ran.answers, ran.gold)}
        found |= {"answers_right": answers_right(ran.answers, ran.gold)}
        return found | ({"teacher": teacher_choice(ran.scores, ran.training)} if ran.scores is not None else {})


def answers_right(answers: Path, gold: Path) -> float:
    """Share in 0 to 100 of held-out exams, half of them normal, of which was rightly said whether there is a lesion."""
    said = {line["question_id"]: line["text"] for line in exam_data.read_lines(answers)}
    return 100 * fmean(same_answer(said[line["question_id"]], line["answer"]) for line in exam_data.read_lines(gold))


def teacher_choice(scores: Path, training: Path) -> float:
    """Share in 0 to 100 of training exams with a lesion whose best frame by the teacher shows it."""
    found = read_frame_scores(scores).scores
    hits = {}
    for record in read_json(training):
        frames = found[record["exam_id"]]
        best = max(range(len(record["image"])), key=lambda place: frames[record["image"][place]])
        if len(record["valid_frames"]) < len(record["image"]):  # else a normal exam
            hits[record["exam_id"]] = best in record["valid_frames"]
    return 100 * fmean(hits.values())
