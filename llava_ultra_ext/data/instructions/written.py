"""What every writer of instructions yields, and what it promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from llava_ultra_ext.data.instructions.reported_exam import ReportedExam

TOPICS = ("site", "findings", "diagnosis", "report")
"""What a question is about; ``report`` asks for findings and diagnosis at once (paper, 4.2: "answers related to
examination sites, ultrasound observations, or medical diagnoses")."""


@dataclass(frozen=True)
class Asked:
    """A question and its answer.

    Args:
        topic: one of `TOPICS`.
        question: without picture tokens; may name the site, from which both versions are made.
        answer: what the report says.
    """

    topic: str
    question: str
    answer: str


@dataclass(frozen=True)
class Refusal:
    """An answer of a chat model that was not taken.

    Args:
        exam: id of the exam.
        reason: short name for counting.
        claim: the word or number that the report does not hold, which therefore is no text of the report.
    """

    exam: str
    reason: str
    claim: str = ""


@dataclass(frozen=True)
class Written:
    """The instructions of one exam.

    Args:
        simple: stage 1, one simple description.
        conversation: stage 2, at least one question.
        writer: ``template`` or ``chat``.
        refusals: what was refused on the way.
    """

    simple: Asked
    conversation: tuple[Asked, ...]
    writer: str
    refusals: tuple[Refusal, ...] = ()


class Writer(Protocol):
    """Writes instructions; the same exam, settings and answers give the same ones."""

    workers: int
    """How many exams it may write at the same time, in threads."""

    def write(self, exam: ReportedExam) -> Written:
        """The instructions of one exam.

        Raises:
            RuntimeError: no further exam can be written, and what to do about it.
        """
