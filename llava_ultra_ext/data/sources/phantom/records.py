"""A phantom exam as records: of the manifest that ``llava-ultra import exams`` reads, of the two training lists."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava_ultra_ext.data.exam import IMAGE_TOKEN
from llava_ultra_ext.data.sources.phantom import words
from llava_ultra_ext.data.sources.phantom.case import Case
from llava_ultra_ext.data.sources.phantom.drawing import frame_name
from llava_ultra_ext.data.sources.phantom.questions import questions, rephrased
from llava_ultra_ext.data.sources.phantom.report_text import caption, findings

MIX = (2, 1, 3)
"""Stage 2's samples of an exam that ask for findings, for the diagnosis, and for anything else.

Our choice: findings say most of the pictures, and the short answers of many kinds need as many samples again.
"""


CAPTION = "请简单描述该超声图像。"
"""What stage 1 asks; LLaVA's plain template leaves it out."""


@dataclass(frozen=True)
class Drawn:
    """An exam whose frames are written.

    Args:
        case: what is in them.
        split: train, validate or test.
        valid: 0-based frames that mirror the text.
    """

    case: Case
    split: str
    valid: tuple[int, ...]


def manifest(exams: Sequence[Drawn]) -> list[dict[str, Any]]:
    """Every question of every exam, a record each, with ``content_type`` and ``answer_type``."""
    return [
        {
            **_record(exam, question.key, question.text, question.answer),
            "split": exam.split,
            "content_type": question.key,
            "answer_type": question.answer_type,
            "lang": "zh",
        }
        for exam in exams
        for question in questions(exam.case)
    ]


def stage1(exams: Sequence[Drawn]) -> list[dict[str, Any]]:
    """Each training exam once: its pictures and a simple description."""
    return [_record(exam, "caption", CAPTION, caption(exam.case)) for exam in exams if exam.split == "train"]


def stage2(exams: Sequence[Drawn]) -> list[dict[str, Any]]:
    """Each training exam by `MIX`, one question a sample; a normal exam has one question beside findings, diagnosis."""
    made = []
    for exam in exams:
        if exam.split != "train":
            continue
        choice = random.Random(f"{exam.case.seed}/stage2")
        first, second, *others = questions(exam.case)
        asked = []
        for question, count in ((first, MIX[0]), (second, MIX[1])):
            for _ in range(count):
                asked.append((question.key, rephrased(exam.case, question.key, choice), question.answer))
        for question in choice.sample(others, min(MIX[2], len(others))):
            asked.append((question.key, question.text, question.answer))
        for number, (key, text, answer) in enumerate(asked, start=1):
            made.append(_record(exam, f"{number}-{key}", text, answer))
    return made


def truth(exams: Sequence[Drawn]) -> list[dict[str, Any]]:
    """Each exam's case, its split and its valid frames, for analyses."""
    return [{**dataclasses.asdict(exam.case), "split": exam.split, "valid_frames": exam.valid} for exam in exams]


def _record(exam: Drawn, name: str, text: str, answer: str) -> dict[str, Any]:
    case = exam.case
    images = [frame_name(case.exam_id, number) for number in range(len(case.frames))]
    return {
        "id": f"{case.exam_id}-{name}",
        "exam_id": case.exam_id,
        "image": images,
        "site": words.SITES[case.site],
        "modality": "ultrasound",
        "findings": findings(case),
        "valid_frames": list(exam.valid),
        "conversations": [
            {"from": "human", "value": f"{IMAGE_TOKEN}\n" * len(images) + text},
            {"from": "gpt", "value": answer},
        ],
    }
