"""超声所见 and 诊断 of a phantom exam, true of its record by construction.

Every attribute of every lesion is stated, so that it can be read back from the text alone; also that no flow is seen
where Doppler is off. The exam's seed decides on sentence plan, wordings and their order: the same case gives the same
text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from llava_ultra_ext.data.sources.phantom import background, words
from llava_ultra_ext.data.sources.phantom.case import Case, Lesion

_NUMBERS = ("一", "二", "三", "四", "五", "六")
"""So many lesions have a number word; an exam of more of them is numbered by figures only."""

_CAPTIONED = {"margin": "边缘", "texture": "回声", "calcification": "", "posterior": "后方"}
"""Attribute -> what stands before its value in a caption, in the caption's order."""


def findings(case: Case) -> str:
    """超声所见, the exam's report.

    Returns:
        Sentences in Chinese, without line breaks: the organ, each lesion, the rest of the organ; or a normal organ.
    """
    choice = _choice(case, "findings")
    organ = choice.choice(background.ORGAN[case.site])
    if not case.lesions:
        return organ + _clear(case, choice)
    heads = _heads(len(case.lesions), choice)
    described = "".join(head + _lesion(case, number, choice) for number, head in enumerate(heads))
    plan = choice.randrange(4)
    before = organ if plan != 1 else ""
    behind = choice.choice(background.REST[case.site]) if plan != 0 else ""
    return before + described + behind


def caption(case: Case) -> str:
    """A simple description (paper, section 4.2, stage 1): one wording a value, nothing said twice.

    Our choice: stage 1 trains a projector alone, and the freedom of a report's wording would be most of its loss.
    """
    if not case.lesions:
        return f"{words.SITES[case.site]}未见病灶。"
    said = []
    for lesion in case.lesions:
        parts = [words.PLACES[case.site][lesion.place][0] + words.ECHOES[lesion.echo] + words.NOUNS[case.site][0]]
        for attribute, name in _CAPTIONED.items():
            parts.append(name + words.answer(attribute, lesion, case.site))
        said.append("，".join(parts))
    return "；".join(said) + "。"


def diagnosis(case: Case) -> str:
    """诊断: place and kind of each lesion in the order of the findings, or that there is none."""
    choice = _choice(case, "diagnosis")
    if not case.lesions:
        return choice.choice(background.NORMAL_DIAGNOSES).format(site=words.SITES[case.site])
    said = [
        words.PLACES[case.site][lesion.place][0] + choice.choice(words.KINDS[case.site][lesion.kind])
        for lesion in case.lesions
    ]
    if len(said) > 1 and choice.random() < 0.5:
        said = [f"{number}. {text}" for number, text in enumerate(said, start=1)]
    return "；".join(said) + "。"


class _First(random.Random):
    """Chooses the first of everything, and what is likely rather than what is not."""

    def choice(self, seq: Any) -> Any:
        return seq[0]

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return 0 if stop is None else start

    def random(self) -> float:
        return 1.0

    def shuffle(self, x: Any, *_: Any) -> None:
        """Leaves the order."""


def _choice(case: Case, text: str) -> random.Random:
    return _First() if case.plain else random.Random(f"{case.seed}/{text}")


def _clear(case: Case, choice: random.Random) -> str:
    text = choice.choice(background.CLEAR[case.site])
    doppler = any(frame.doppler for frame in case.frames if frame.site == case.site)
    return text + (choice.choice(background.CLEAR_FLOW) if doppler and choice.random() < 0.7 else "")


def _heads(count: int, choice: random.Random) -> list[str]:
    """What stands before each lesion's sentences: nothing, a figure, or 病灶一：."""
    plan = choice.randrange(3) if count > 1 else 0
    if plan == 1:
        return [f"{number}. " for number in range(1, count + 1)]
    if plan == 2 and count <= len(_NUMBERS):
        return [f"病灶{number}：" for number in _NUMBERS[:count]]
    return [""] * count


def _lesion(case: Case, number: int, choice: random.Random) -> str:
    """One or more sentences; the first names place and echo, later ones begin with 其, 病灶 or the Doppler's name."""
    lesion = case.lesions[number]
    place = choice.choice(words.PLACES[case.site][lesion.place])
    what = words.ECHOES[lesion.echo] + choice.choice(words.NOUNS[case.site])
    size = choice.choice(words.SIZES).format(*lesion.size_mm)
    clauses = _clauses(lesion, choice)
    plan = choice.randrange(4)
    if plan == 0:
        opening = f"{place}见一{what}，{size}"
    elif plan == 1:
        opening = f"于{place}可见一个{size}的{what}"
    elif plan == 2:
        opening = f"{place}探及{what}一枚，{size}"
    else:
        opening = f"{place}可见{what}"
        clauses.insert(choice.randrange(len(clauses) + 1), size)
    flow = choice.choice(words.CLAUSES["flow"][lesion.flow])
    device = choice.choice(words.DOPPLER)
    return _joined(opening, clauses, device + flow if _has_doppler(case, number) else flow, choice)


def _has_doppler(case: Case, number: int) -> bool:
    """Whether the colour box is on in the frame that shows a lesion best: elsewhere its text names no Doppler."""
    return max(case.frames, key=lambda frame: frame.visibility[number]).doppler


def _joined(opening: str, clauses: Sequence[str], flow: str, choice: random.Random) -> str:
    """Opening, clauses and flow as one sentence, or cut in two, flow in the last one or in its own."""
    text = opening
    cut = choice.randrange(1, len(clauses)) if choice.random() < 0.35 else len(clauses)
    for number, clause in enumerate(clauses):
        text += "。" + choice.choice(("其", "病灶", "该病灶")) + clause if number == cut else "，" + clause
    joint = choice.choice(("。", "，", "；"))
    return text + (joint if flow.startswith(words.DOPPLER) else "，") + flow + "。"


def _clauses(lesion: Lesion, choice: random.Random) -> list[str]:
    """A clause for each attribute but echo, place, size and flow, in an order of its own.

    Outline and inside stay together, as a report goes; each pair turns round, and the three parts change places.
    """

    def clause(attribute: str) -> str:
        return choice.choice(words.CLAUSES[attribute][getattr(lesion, attribute)])

    outline = [clause("margin"), clause("shape")]
    inside = [clause("texture"), clause("calcification")]
    behind = [clause("posterior")]
    choice.shuffle(outline)
    choice.shuffle(inside)
    if lesion.calcification == "coarse" and lesion.posterior == "shadow" and choice.random() < 0.5:
        inside, behind = [clause("texture"), choice.choice(words.COARSE_WITH_SHADOW)], []
    parts = [outline, inside, behind]
    choice.shuffle(parts)
    return [text for part in parts for text in part]
