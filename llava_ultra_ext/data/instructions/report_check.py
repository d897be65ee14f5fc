"""Whether an answer says only what the report says: its numbers, sides, sites, lesions and what is denied.

A claim is a number with its unit, 左 or 右, a site of the dictionary, or a word of ``clinical_words``, each lesion with
the side that it is said of and whether it is denied. Every claim of an answer must be one of the report; lengths may be
in mm or cm. What has no such words is not checked: this finds inventions, it does not prove that there are none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from llava_ultra_ext.data.instructions.clinical_words import NEGATIONS, WORDS
from llava_ultra_ext.data.sites import SiteDictionary

REASONS = {
    "number": "a number, or a number with this unit, that the report does not hold",
    "side": "a side that the report does not hold",
    "site": "a site that the report does not hold",
    "word": "a finding that the report does not hold",
    "denied": "a finding is affirmed that the report denies, or denied that it affirms",
    "other_side": "a finding is said of a side of which the report does not say it",
}

_MM = {"mm": 1.0, "毫米": 1.0, "cm": 10.0, "厘米": 10.0}
_UNIT = r"cm/s|m/s|mmhg|mm|cm|ml|毫米|厘米|毫升|bpm|次/分|%|kpa|mhz|hz|点|级|类|度|期|型|枚|个|处|周|天|月|岁|年"
_NUMBER = re.compile(rf"(?<![0-9.])([0-9]+(?:\.[0-9]+)?)(?:\s*({_UNIT}))?([a-d](?![a-z]))?(\s*[x×*])?", re.I)
_COUNT = re.compile(
    r"([二两三四五六七八九十]{1,3})\s*(枚|个|处|级|类|度|期|型|支|条)|([一1i]|[iv]{2,3})(级|类|度|期|型)", re.I
)
_WORD = re.compile("|".join(sorted(map(re.escape, WORDS), key=lambda word: (-len(word), word))))
_SIDE = re.compile("双侧|两侧|双|左右|左|右")
_NEGATED = re.compile("|".join(map(re.escape, NEGATIONS)))
_SENTENCE = re.compile(r"[。;\n!?]+")
_PAUSE = re.compile(r"[,:]")
_AFFIRMED = re.compile("可见|内见|伴有|但")
_SIDES = {"双侧": "左右", "两侧": "左右", "双": "左右"}


@dataclass(frozen=True)
class Claims:
    """What a text says, in signs that two texts can be compared by.

    Args:
        numbers: of lengths in mm (``12.0mm``), of others as written (``4a类``); and each number bare.
        sides: of 左 and 右.
        sites: keys of the dictionary.
        words: of `clinical_words`.
        denied: (word, whether it is denied).
        sided: (side, word), side empty where none was named yet.
    """

    numbers: frozenset[str]
    bare_numbers: frozenset[str]
    sides: frozenset[str]
    sites: frozenset[str]
    words: frozenset[str]
    denied: frozenset[tuple[str, bool]]
    sided: frozenset[tuple[str, str]]


def claims(sites: SiteDictionary, *texts: str) -> Claims:
    """What texts say; a side that one names does not hold in the next."""
    parts = [unicodedata.normalize("NFKC", text).lower() for text in texts]
    said = [one for part in parts for one in _said(part)]
    folded = "\n".join(parts)
    numbers, bare = _numbers(folded)
    return Claims(
        numbers=frozenset(numbers),
        bare_numbers=frozenset(bare),
        sides=frozenset("".join(_SIDES.get(side, side) for side in _SIDE.findall(folded))),
        sites=frozenset(sites.keys_in(folded)),
        words=frozenset(word for _, word, _ in said),
        denied=frozenset((word, denied) for _, word, denied in said),
        sided=frozenset((side, word) for sides, word, _ in said for side in sides or ("",)),
    )


def invention(answer: str, report: Claims, sites: SiteDictionary) -> tuple[str, str]:
    """The first claim of an answer that the report does not make.

    Args:
        answer: a text.
        report: claims of findings, diagnosis and site together.
        sites: the dictionary of both.

    Returns:
        A key of `REASONS` and the claim; two empty strings: none.
    """
    made = claims(sites, answer)
    for reason, given, known in (
        ("number", made.numbers, report.numbers | report.bare_numbers),
        ("side", made.sides, report.sides),
        ("site", made.sites, report.sites),
        ("word", made.words, report.words),
    ):
        if new := sorted(given - known):
            return reason, new[0]
    if new_denied := sorted(made.denied - report.denied):
        return "denied", new_denied[0][0]
    other_side = sorted((side, word) for side, word in made.sided - report.sided if side)
    return ("other_side", "".join(other_side[0])) if other_side else ("", "")


def _said(text: str) -> Iterator[tuple[str, str, bool]]:
    """Sides in force, word, whether it is denied; a side holds until another one is named."""
    sides = ""
    for sentence in _SENTENCE.split(text):
        if not sides and (first := _SIDE.search(sentence)):  # 结节位于左叶
            sides = _SIDES.get(first.group(), first.group())
        for clause in _PAUSE.split(sentence):
            denied = False
            for place, kind, value in sorted(_signs(clause)):
                if kind == "side":
                    sides = _SIDES.get(value, value)
                elif kind == "word":
                    yield sides, value, denied
                elif value != "无" or not _WORD.match(clause, place):  # 无回声 denies nothing
                    denied = kind == "no"


def _signs(clause: str) -> Iterator[tuple[int, str, str]]:
    for kind, pattern in (("side", _SIDE), ("no", _NEGATED), ("yes", _AFFIRMED), ("word", _WORD)):
        yield from ((match.start(), kind, match.group()) for match in pattern.finditer(clause))


def _numbers(text: str) -> tuple[list[str], list[str]]:
    """Numbers with units, and bare; in 12×8mm the unit belongs to both."""
    found: list[str] = []
    bare: list[str] = []
    waiting: list[float] = []
    for match in _NUMBER.finditer(text):
        number, unit, letter, times = match.groups()
        waiting.append(float(number))
        if times and not unit:
            continue
        unit = (unit or "").lower()
        found += [f"{one * _MM[unit]:g}mm" if unit in _MM else f"{one:g}{unit}{letter or ''}" for one in waiting]
        bare += [f"{one:g}" for one in waiting]
        waiting = []
    bare += [f"{one:g}" for one in waiting]
    found += [f"{one:g}" for one in waiting]
    counts = ["".join(part for part in match if part) for match in _COUNT.findall(text)]
    return found + counts, bare
