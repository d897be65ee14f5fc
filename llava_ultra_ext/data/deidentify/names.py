"""Names of people in Chinese text.

A clause is cut into words and names in the likeliest way: a name is found where a surname with a given name explains
the characters better than ordinary words do, and words that go with names (患者 before, 医生 after) make it likelier.
Words and their frequencies, and the characters of given names, are counted in jieba's dictionary (a unigram model, as
jieba's own cut uses); clinical words are added to it. No training, no network.

Our choice: rules and a word list in place of a neural tagger. None of those on the registries ships its Chinese weights
in the package, and what is found must not change with a download.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable

from llava_ultra_ext.data.deidentify.name_evidence import ENDS, SURE, evidence, left_of, of_description, right_of
from llava_ultra_ext.data.deidentify.name_words import LONGEST, NEVER_GIVEN, PERSON_ENDS, TITLES, Lexicon, read_dictionary

PLACEHOLDER = "[姓名]"

_HAN = r"\u4e00-\u9fff"
_DOTS = "·•・‧∙．."
_DOT = f"[{_DOTS}]"

_ROLE = (
    rf"(?:姓\s*名|[{_HAN}]{{0,4}}(?:医师|医生|技师|护士|大夫)(?:签名|签字)?|"
    r"(?:记录|检查|报告|审核|审签|审阅|复核|签发|操作|录入|书写|诊断|送检|申请|打字|陪同)(?:者|员|人)|[\u4e00-\u9fff]{2}者|[\u4e00-\u9fff]{0,2}专家|助手|"
    r"签名|签发|审阅|签字|联系人|监护人|Name|Operator|Physician|Doctor)"
)
_LABELLED = re.compile(
    rf"(?P<keep>{_ROLE}\s*[:：]\s*)(?P<name>[{_HAN}]+(?:{_DOT}[{_HAN}]+)+|"
    rf"[{_HAN}](?:[ \u3000]{{1,3}}[{_HAN}]){{1,3}}(?![{_HAN}])|[{_HAN}]{{1,5}}(?![{_HAN}])|"
    r"[A-Z][A-Za-z'\-]+(?:[ ,^]+[A-Z][A-Za-z'\-]*){0,2})",
    re.IGNORECASE,
)
_BLANK = re.compile(
    r"无|未知|未填|不详|不明|略|同上|同前|见上|如上|外院|本院|待定|否认|保密|男|女|超声科?|影像科?|空|签名|电子签名|已签"
)
_LATIN = re.compile(
    r"(?<![A-Za-z])(?P<keep>(?:Dr|Mr|Mrs|Ms|Miss|Prof)\.?\s+)[A-Z][A-Za-z'\-]+(?:\s+[A-Z][A-Za-z'\-]+)?"
)
_EPONYM = re.compile(r"(?:氏|综合征|征|病|法|分级|分型|四联症|现象|囊肿|腺|管|线|手术(?![后前中])|术(?![后前中])|三联征|效应|评分)")
_DOTTED = re.compile(rf"[{_HAN}]{{1,8}}(?:{_DOT}[{_HAN}]{{1,8}})+")
_RUN = re.compile(rf"\[[^\[\]]{{1,8}}\]|[{_HAN}]+(?:[·•・‧∙][{_HAN}]+)*")

_NEVER_FIRST = "及与和同由经请的为是等之给向对在于有无"
_PREPOSITIONS = "向由经和从"
_UNKNOWN = 15.0  # nats for a character that the dictionary lacks
_DESCRIPTION = 2.0  # nats more against a name in a clause that describes a body
_USUAL = 7.0  # nats of a surname that many bear
_BARE = 6.0
"""Nats against a name where nothing speaks for one. Chosen on made-up reports and on 301 public Chinese texts: at 4.5
words such as 窦部 begin to go, above 6 more names are missed in phrases that hold none of the cues."""


class _Around:
    """What speaks for names within one run of characters; each place is looked at once."""

    def __init__(self, lexicon: Lexicon, text: str, start: int, end: int, found: list[tuple[int, int]]) -> None:
        self._where = (text, start, end, found, lexicon)
        self._right: dict[int, float] = {}
        self.bare = _BARE + (_DESCRIPTION if of_description(text, start, end) else 0.0)

    def left(self, at: int) -> float:
        text, start, _, found, lexicon = self._where
        return left_of(text, at, start, found, lexicon)

    def right(self, at: int) -> float:
        if at not in self._right:
            text, _, end, found, lexicon = self._where
            self._right[at] = right_of(text, at, end, found, lexicon)
        return self._right[at]


class NameFinder:
    """Finds names; made once, since it reads a dictionary (`name_finder` keeps one a process)."""

    def __init__(self) -> None:
        self.lexicon = read_dictionary()
        self.words, self.given, self.surnames = self.lexicon.words, self.lexicon.given, self.lexicon.surnames
        self._starts = {surname[0] for surname in self.surnames}

    def remove(self, text: str, known: Iterable[str], removed: Callable[[str], None]) -> str:
        """Every name of a text replaced by `PLACEHOLDER`.

        Args:
            text: any text.
            known: names from the record's own header, in any spelling (张三, ZHANG^SAN); each is removed wherever it
                stands. A name of one character is only removed beside a word that goes with names.
            removed: is told ``name`` for each.
        """
        text = self._known(text, known, removed)

        def keep(match: re.Match[str]) -> str:
            if match["name"] and (_BLANK.match(match["name"]) or match["name"] in TITLES):
                return match.group()
            removed("name")
            return match["keep"] + PLACEHOLDER

        def latin(match: re.Match[str]) -> str:
            removed("name")
            return match["keep"] + PLACEHOLDER

        text = _LATIN.sub(latin, _LABELLED.sub(keep, text))
        found: list[tuple[int, int]] = []
        for _ in range(3):  # a name in a list (张三、李四医生) speaks for its neighbours
            spans = self._spans(text, found)
            if spans == found:
                break
            found = spans
        repeated = [text[start:end] for start, end in found if end - start > 1]
        for start, end in reversed(found):
            removed("name")
            text = text[:start] + PLACEHOLDER + text[end:]
        return self._known(text, [name for name in repeated if name not in self.words or name in self.lexicon.names], removed)

    def _known(self, text: str, known: Iterable[str], removed: Callable[[str], None]) -> str:
        def replaced(match: re.Match[str]) -> str:
            removed("name")
            return PLACEHOLDER

        for pattern in sorted({form for name in known for form in _forms(name)}, key=len, reverse=True):
            text = re.sub(pattern, replaced, text, flags=re.IGNORECASE)
        return text

    def _spans(self, text: str, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
        spans: list[tuple[int, int]] = []
        for match in _RUN.finditer(text):
            if (
                match.group()[0] != "["
                and any(character in self._starts or character in _DOTS for character in match.group())
            ) or (match.group()[0] != "[" and len(match.group()) > 1):
                spans += self._cut(text, match.start(), match.end(), found)
        return spans

    def _cut(self, text: str, start: int, end: int, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The names on the cheapest way through text[start:end], a run of Chinese characters."""
        size = end - start
        cost = [0.0] + [math.inf] * size
        back: list[tuple[int, bool]] = [(0, False)] * (size + 1)
        around = _Around(self.lexicon, text, start, end, found)
        for i in range(size):
            here, at = cost[i], start + i
            for j in range(i + 1, min(i + LONGEST, size) + 1):
                word = self.words.get(text[at : start + j])
                if word is None:
                    if j > i + 1:
                        continue
                    word = _UNKNOWN
                if here + word < cost[j]:
                    cost[j], back[j] = here + word, (i, False)
            for length, price in self._names(text, at, end, around):
                if here + price < cost[i + length]:
                    cost[i + length], back[i + length] = here + price, (i, True)
        spans = []
        position = size
        while position:
            before, is_name = back[position]
            if is_name:
                spans.append((start + before, start + position))
            position = before
        return spans[::-1]

    def _names(self, text: str, at: int, end: int, around: _Around) -> Iterable[tuple[int, float]]:
        """(length, nats) of every name that may start at `at`."""
        left = around.left(at)
        if text[at] in self._starts:
            for surname in (text[at : at + 2], text[at : at + 1]):
                price = self.surnames.get(surname)
                if price is None or at + len(surname) > end:
                    continue
                for stop in range(at + len(surname), min(at + len(surname) + 2, end) + 1):
                    given = self._given(text[at + len(surname) : stop])
                    right = around.right(stop)
                    if given is None and not self._alone(text, at, stop, end, left, right):
                        continue
                    if given is None:
                        right += 2.0  # 焦主任: nobody writes a title behind a surname by chance
                    yield stop - at, around.bare + price + (given or 0.0) - evidence(left, right)
                double = text[at + 1 : at + 2]  # 张王晓明: a married couple's child with both surnames
                if len(surname) == 1 and double in self.surnames and at + 4 <= end:
                    given = (self._given(text[at + 2 : at + 4]) or 0.0) + self.surnames[double]
                    yield 4, around.bare + price + given - evidence(left, around.right(at + 4))
        if text[at] not in _NEVER_FIRST:
            yield from self._dotted(text, at, end, left, around)
        if left >= 5.0 and text[at] not in _NEVER_FIRST and text[at : at + 2] not in self.lexicon.terms:  # a name of a kind that no list knows: between 患者 and ，男
            for stop in range(at + 2, min(at + 5, end) + 1):
                right = around.right(stop)
                if right >= 5.0 and text[at:stop] not in self.words and not NEVER_GIVEN.intersection(text[at:stop]):
                    yield stop - at, 8.0 + 6.5 * (stop - at) - evidence(left, right)

    def _dotted(self, text: str, at: int, end: int, left: float, around: _Around) -> Iterable[tuple[int, float]]:
        """The names with a dot (阿依古丽·买买提) that may start at `at`; the diseases called after people have one too."""
        dotted = _DOTTED.match(text, at, end)
        first = re.search(_DOT, dotted.group()) if dotted else None
        if not dotted or not first or _EPONYM.search(text, at, min(at + first.end() + 5, dotted.end() + 5)):
            return
        for stop in range(at + first.start() + 2, dotted.end() + 1):
            if text[stop - 1] not in _DOTS and not _EPONYM.match(text, stop):
                yield stop - at, -6.0 + 6.5 * (stop - at) - evidence(left, around.right(stop))

    def _alone(self, text: str, at: int, stop: int, end: int, left: float, right: float) -> bool:
        """Whether a surname may stand without a given name: 张主任, 住院医张; 建议向医生咨询 has none."""
        if right >= 6.0:
            return left > 0.0 or text[at] not in _PREPOSITIONS
        usual = self.surnames[text[at:stop]] < _USUAL and text[at] not in PERSON_ENDS + _PREPOSITIONS
        return usual and left >= SURE and stop == end and text[end : end + 1] in ENDS

    def _given(self, characters: str) -> float | None:
        if not characters:
            return None
        if len(characters) == 1:
            return 1.6 + self.given[0].get(characters, 8.5)
        return 0.3 + self.given[1].get(characters[0], 8.5) + self.given[2].get(characters[1], 8.5)


def _forms(name: str) -> list[str]:
    """Patterns of a name's spellings: spaces between Chinese characters, Latin words in either order."""
    forms: list[str] = []
    for group in name.replace("＝", "=").split("="):  # DICOM PN: alphabetic, ideographic, phonetic
        parts = [part for part in re.split(r"[\^\s,，]+", group.strip()) if part]
        joined = "".join(parts)
        if re.fullmatch(rf"[{_HAN}{_DOTS}]+", joined):
            if len(joined) > 1:
                forms.append(r"[ \u3000^]{0,3}".join(re.escape(character) for character in joined))
            else:
                forms.append(rf"(?<![{_HAN}]){re.escape(joined)}(?![{_HAN}])|{re.escape(joined)}(?={'|'.join(TITLES)})")
        elif len(joined) > 1 and all(re.fullmatch(r"[^\W\d_][\w'\-.]*", part) for part in parts):
            for order in (parts, parts[::-1]):
                forms.append(rf"(?<![A-Za-z]){'[ ^,，]{0,3}'.join(map(re.escape, order))}(?![A-Za-z])")
    return forms


@functools.cache
def name_finder() -> NameFinder:
    """The finder of this process."""
    return NameFinder()
