"""What is asked about a phantom exam: findings, diagnosis, single attributes, and closed questions.

Half of the questions of an exam, drawn from its seed, name the site (该甲状腺超声图像), the other
half do not (该超声图像), so that both versions of ``llava-ultra import exams --site-cue`` change something. Without its
site every question is still a sentence.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from llava_ultra_ext.data.sources.phantom import words
from llava_ultra_ext.data.sources.phantom.case import Case, Lesion
from llava_ultra_ext.data.sources.phantom.report_text import diagnosis, findings

OPEN: dict[str, tuple[str, ...]] = {
    "findings": ("请描述{this}的所见。", "请根据{this}写出检查所见。", "{this}有哪些表现？请描述。"),
    "diagnosis": ("请给出{this}的诊断。", "根据{this}，诊断是什么？", "请根据{this}作出诊断。"),
    "echo": ("{this}中病灶的回声如何？", "{this}中的病灶呈何种回声？", "根据{this}，病灶是什么回声？"),
    "margin": ("{this}中病灶的边缘如何？", "{this}中的病灶边缘是什么样的？", "根据{this}，病灶边缘有何特点？"),
    "texture": (
        "{this}中病灶的内部回声分布如何？",
        "{this}中的病灶内部质地如何？",
        "根据{this}，病灶内部回声有何特点？",
    ),
    "calcification": ("{this}中病灶的钙化情况如何？", "{this}中的病灶有何种钙化？", "根据{this}，病灶内钙化如何？"),
    "shape": ("{this}中病灶的形态如何？", "{this}中的病灶形态怎样？", "根据{this}，病灶形态有何特点？"),
    "posterior": ("{this}中病灶的后方回声如何？", "{this}中的病灶后方有何改变？", "根据{this}，病灶后方回声有何特点？"),
    "flow": ("{this}中病灶的血流情况如何？", "{this}中的病灶血流在何处？", "根据{this}，病灶血流有何特点？"),
    "place": ("{this}中的病灶位于何处？", "{this}中病灶在什么位置？", "根据{this}，病灶位于哪里？"),
    "size": ("{this}中病灶的大小是多少？", "{this}中的病灶有多大？", "根据{this}，病灶大小如何？"),
}
"""Key of an open question -> its phrasings."""

ATTRIBUTES = tuple(key for key in OPEN if key not in ("findings", "diagnosis"))
"""Keys of the open questions about one attribute of one lesion."""

CLOSED: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lesion_seen": (
        ("{this}中是否见病灶？", "是", "否"),
        ("{this}中有没有病灶？", "有", "没有"),
        ("根据{this}，是否存在病灶？", "是", "否"),
    ),
    "micro_seen": (
        ("{this}中的病灶内是否有微钙化？", "是", "否"),
        ("{this}中的病灶有没有微钙化？", "有", "没有"),
        ("根据{this}，病灶内是否见微钙化？", "是", "否"),
    ),
    "margin_smooth": (
        ("{this}中的病灶边缘是否光整？", "是", "否"),
        ("根据{this}，病灶边缘是否光滑？", "是", "否"),
        ("{this}中病灶的边缘光整，对吗？", "是", "否"),
    ),
    "texture_even": (
        ("{this}中的病灶内部回声是否均匀？", "是", "否"),
        ("根据{this}，病灶内部回声是否均质？", "是", "否"),
        ("{this}中病灶的内部回声均匀，对吗？", "是", "否"),
    ),
    "flow_seen": (
        ("{this}中的病灶是否见血流信号？", "是", "否"),
        ("{this}中的病灶有没有血流信号？", "有", "没有"),
        ("根据{this}，病灶是否有血流信号？", "是", "否"),
    ),
}
"""Key of a closed question -> its phrasings, each with the yes and the no that fit it (`eval.closed` takes all)."""

_HOLDS: dict[str, Callable[[Lesion], bool]] = {
    "micro_seen": lambda lesion: lesion.calcification == "micro",
    "margin_smooth": lambda lesion: lesion.margin == "smooth",
    "texture_even": lambda lesion: lesion.texture == "homogeneous",
    "flow_seen": lambda lesion: lesion.flow != "none",
}

KEYS = (*OPEN, *CLOSED)


@dataclass(frozen=True)
class Question:
    """One question about an exam.

    Args:
        key: one of `KEYS`; the ``content_type`` of its record, so that scores come for each attribute.
        text: without picture tokens.
        answer: what is true of the case.
        answer_type: ``OPEN`` or ``CLOSED``.
    """

    key: str
    text: str
    answer: str
    answer_type: str


def questions(case: Case) -> tuple[Question, ...]:
    """All questions about an exam, in the order of `KEYS`; the same case gives the same ones.

    An exam without lesions has ``findings``, ``diagnosis`` and ``lesion_seen``. With several lesions, no attribute is
    asked of a lesion that the question could not name; a closed question is asked where its answer holds for each.
    """
    choice = random.Random(f"{case.seed}/questions")
    asked = {key: _open_answer(case, key) for key in OPEN if _is_asked(case, key)}
    closed = {key: _closed_answer(case, key) for key in CLOSED if _is_asked(case, key)}
    named = _named_half(len(asked) + len(closed), choice)
    made = []
    for key, answer in asked.items():
        made.append(Question(key, choice.choice(OPEN[key]), answer, "OPEN"))
    for key, holds in closed.items():
        text, yes, no = choice.choice(CLOSED[key])
        made.append(Question(key, text, yes if holds else no, "CLOSED"))
    return tuple(
        Question(
            question.key, question.text.format(this=_this(case, site, choice)), question.answer, question.answer_type
        )
        for question, site in zip(made, named, strict=True)
    )


def rephrased(case: Case, key: str, choice: random.Random) -> str:
    """Another wording of one of the open questions, for a further training sample."""
    return choice.choice(OPEN[key]).format(this=_this(case, choice.random() < 0.5, choice))


def _named_half(count: int, choice: random.Random) -> list[bool]:
    named = [True] * (count // 2) + [False] * (count // 2) + [choice.random() < 0.5] * (count % 2)
    choice.shuffle(named)
    return named


def _this(case: Case, named: bool, choice: random.Random) -> str:
    return choice.choice(("该", "这组")) + (words.SITES[case.site] if named else "") + "超声图像"


def _is_asked(case: Case, key: str) -> bool:
    if key in ("findings", "diagnosis", "lesion_seen"):
        return True
    if key in ATTRIBUTES:
        return len(case.lesions) == 1
    return len({_HOLDS[key](lesion) for lesion in case.lesions}) == 1


def _open_answer(case: Case, key: str) -> str:
    if key == "findings":
        return findings(case)
    return diagnosis(case) if key == "diagnosis" else words.answer(key, case.lesions[0], case.site)


def _closed_answer(case: Case, key: str) -> bool:
    return bool(case.lesions) if key == "lesion_seen" else _HOLDS[key](case.lesions[0])
