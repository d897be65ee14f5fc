"""Which characters of a clause are a name.

A clause is cut into words and names in the likeliest way: a name is found where a surname with a given name explains
the characters better than ordinary words do, and words that go with names (患者 before, 医生 or 称 after) make it
likelier, a clause that describes a body less likely. Words and their frequencies, and the characters of given names,
are counted in jieba's dictionary (a unigram model, as jieba's own cut uses); clinical words are added to it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable

from llava_ultra_ext.data.deidentify.name_evidence import (
    DESCRIBES,
    ENDS,
    REACH,
    SURE,
    evidence,
    left_of,
    right_of,
)
from llava_ultra_ext.data.deidentify.name_lexicon import LONGEST, Lexicon
from llava_ultra_ext.data.deidentify.name_words import NEVER_GIVEN, PERSON_ENDS, PLACEHOLDER_WORDS

DOTS = "·•・‧∙．."
DOT = f"[{DOTS}]"

Spans = list[tuple[int, int]]
"""(start, end) of names."""

_HAN = r"\u4e00-\u9fff"
_EPONYM = re.compile(
    r"(?:氏|综合征|征|病|法|分级|分型|四联症|现象|囊肿|腺|管|线|手术(?![后前中])|术(?![后前中])|三联征|效应|评分)"
)
_DOTTED = re.compile(rf"[{_HAN}]{{1,8}}(?:{DOT}[{_HAN}]{{1,8}})+")
_CLAUSE = re.compile(r"[^，,。；;：:！!？?\n]+")
_REMOVED = rf"\[(?:{'|'.join(PLACEHOLDER_WORDS)})\]"  # placeholders; [张三] is none
_RUN = re.compile(rf"{_REMOVED}|[{_HAN}]+(?:[·•・‧∙][{_HAN}]+)*")

_NEVER_FIRST = "及与和同由经请的为是等之给向对在于有无"
_PREPOSITIONS = "向由经和从"
_UNKNOWN = 15.0  # nats for a character that the dictionary lacks
_DESCRIPTION = 2.0  # nats more against a name in a clause that describes a body
_USUAL = 7.0  # nats of a surname that many bear
_BARE = 5.5
"""Nats against a name where nothing speaks for one."""
_REMEMBERED = 4096  # runs whose names are kept: reports say the same again, and are read until nothing changes


class _Around:
    """What speaks for names within one run of characters; each place is looked at once."""

    def __init__(self, text: str, start: int, end: int, found: Spans, lexicon: Lexicon, described: bool) -> None:
        self.text, self.start, self.end, self.found, self._lexicon = text, start, end, found, lexicon
        self._right: dict[int, float] = {}
        self.bare = _BARE + (_DESCRIPTION if described else 0.0)

    def left(self, at: int) -> float:
        return left_of(self.text, at, self.start, self.found, self._lexicon)

    def right(self, at: int) -> float:
        value = self._right.get(at)
        if value is None:
            value = self._right[at] = right_of(self.text, at, self.end, self.found, self._lexicon)
        return value


class NameSearch:
    """Finds the names of clauses by a `Lexicon`."""

    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        self._starts = {surname[0] for surname in lexicon.surnames}
        self._remembered = functools.lru_cache(_REMEMBERED)(self._cut)

    def spans(self, text: str, found: Spans) -> Spans:
        """The names of a text, in order; those `found` before speak for their neighbours."""
        spans: Spans = []
        for clause in _CLAUSE.finditer(text):
            described = bool(DESCRIBES.search(text, clause.start(), clause.end()))
            for run in _RUN.finditer(text, clause.start(), clause.end()):
                start, end = run.span()
                if (end - start < 2 and text[start] not in self._starts) or text[start] == "[":
                    continue
                first, near = max(0, start - REACH), text[max(0, start - REACH) : end + REACH]
                neighbours = tuple(
                    (begin - first, stop - first)
                    for begin, stop in found
                    if stop > start - REACH and begin < end + REACH
                )
                for begin, stop in self._remembered(near, start - first, end - first, neighbours, described):
                    spans.append((first + begin, first + stop))
        return spans

    def _cut(
        self, text: str, start: int, end: int, found: tuple[tuple[int, int], ...], described: bool
    ) -> tuple[tuple[int, int], ...]:
        """The names on the cheapest way through text[start:end], a run of Chinese characters."""
        size = end - start
        words = self._lexicon.words
        cost = [0.0] + [math.inf] * size
        back: list[tuple[int, bool]] = [(0, False)] * (size + 1)
        around = _Around(text, start, end, list(found), self._lexicon, described)
        for i in range(size):
            here, at = cost[i], start + i
            for j in range(i + 1, min(i + LONGEST, size) + 1):
                word = words.get(text[at : start + j])
                if word is None:
                    if j > i + 1:
                        continue
                    word = _UNKNOWN
                if here + word < cost[j]:
                    cost[j], back[j] = here + word, (i, False)
            for length, price in self._names(around, at):
                if here + price < cost[i + length]:
                    cost[i + length], back[i + length] = here + price, (i, True)
        spans = []
        position = size
        while position:
            before, is_name = back[position]
            if is_name:
                spans.append((start + before, start + position))
            position = before
        return tuple(spans[::-1])

    def _names(self, around: _Around, at: int) -> Iterable[tuple[int, float]]:
        """(length, nats) of every name that may start at `at`."""
        text, end, left = around.text, around.end, around.left(at)
        if text[at] in self._starts:
            yield from self._with_surname(around, at, left)
        if text[at] in _NEVER_FIRST:
            return
        yield from self._dotted(around, at, left)
        if left >= 5.0 and text[at : at + 2] not in self._lexicon.terms:
            for stop in range(at + 2, min(at + 5, end) + 1):  # of a kind that no list knows: between 患者 and ，男
                known = text[at:stop] in self._lexicon.words or NEVER_GIVEN.intersection(text[at:stop])
                if not known and around.right(stop) >= 5.0:
                    yield stop - at, 8.0 + 6.5 * (stop - at) - evidence(left, around.right(stop))

    def _with_surname(self, around: _Around, at: int, left: float) -> Iterable[tuple[int, float]]:
        text, end, surnames = around.text, around.end, self._lexicon.surnames
        for surname in (text[at : at + 2], text[at : at + 1]):
            price = surnames.get(surname)
            behind = at + len(surname)
            if price is None or behind > end:
                continue
            for stop in range(behind, min(behind + 2, end) + 1):
                right = around.right(stop)
                if stop > behind:
                    nats = self._given(text[behind:stop])
                elif self._alone(around, at, stop, left):
                    nats = -2.0  # 焦主任: nobody writes a title behind a surname by chance
                else:
                    continue
                yield stop - at, around.bare + price + nats - evidence(left, right)
            second = surnames.get(text[at + 1 : at + 2])  # 张王晓明: a married couple's child with both surnames
            if len(surname) == 1 and second is not None and at + 4 <= end:
                nats = self._given(text[at + 2 : at + 4]) + second
                yield 4, around.bare + price + nats - evidence(left, around.right(at + 4))

    def _dotted(self, around: _Around, at: int, left: float) -> Iterable[tuple[int, float]]:
        """Those with a dot (阿依古丽·买买提); the diseases called after people have one too."""
        text = around.text
        dotted = _DOTTED.match(text, at, around.end)
        first = re.search(DOT, dotted.group()) if dotted else None
        if not dotted or not first or _EPONYM.search(text, at, min(at + first.end(), dotted.end()) + 5):
            return
        for stop in range(at + first.start() + 2, dotted.end() + 1):
            if text[stop - 1] not in DOTS and not _EPONYM.match(text, stop):
                yield stop - at, -6.0 + 6.5 * (stop - at) - evidence(left, around.right(stop))

    def _alone(self, around: _Around, at: int, stop: int, left: float) -> bool:
        """Whether a surname may stand without a given name: 张主任, 住院医张; 建议向医生咨询 has none."""
        text = around.text
        if around.right(stop) >= 6.0:
            return left >= 2.0 or text[at] not in _PREPOSITIONS
        usual = self._lexicon.surnames[text[at:stop]] < _USUAL and text[at] not in PERSON_ENDS + _PREPOSITIONS
        return usual and left >= SURE and stop == around.end and text[stop : stop + 1] in ENDS

    def _given(self, characters: str) -> float:
        given = self._lexicon.given
        if len(characters) == 1:
            return 1.6 + given[0].get(characters, 8.5)
        return 0.3 + given[1].get(characters[0], 8.5) + given[2].get(characters[1], 8.5)
