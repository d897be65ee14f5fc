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

from llava_ultra_ext.data.deidentify.name_words import (
    ACTS,
    DEEDS,
    FOLLOWERS,
    HELPERS,
    LINKS,
    LONGEST,
    PERSONS,
    TITLES,
    read_dictionary,
)

PLACEHOLDER = "[姓名]"

_HAN = r"\u4e00-\u9fff"
_DOTS = "·•・‧∙．."
_DOT = f"[{_DOTS}]"

_AFTER_NAME = re.compile(
    r"[\s,，、(（:：]*(?:男|女)(?![\u4e00-\u9fff]*(?:性生殖|科))|[\s(（]+(?:家属|本人|患者|病人|签字|签名)"
    r"|[\s,，、(（]+\d{1,3}\s*(?:周岁|岁)"
)
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
_EPONYM = re.compile(r"(?:氏|综合征|征|病|法|分级|分型|四联症|现象|囊肿|腺|管|线|手术|术|三联征|效应|评分)")
_DOTTED = re.compile(rf"[{_HAN}]{{1,8}}(?:{_DOT}[{_HAN}]{{1,8}})+")
_RUN = re.compile(rf"\[[^\[\]]{{1,8}}\]|[{_HAN}]+(?:[·•・‧∙][{_HAN}]+)*")
_LIST = re.compile(r"\s*[、/／和与及]\s*|\s+")

_NEVER_FIRST = "及与和同由经请的为是等之给向对在于有无"
_OPENERS = "于余"  # open clauses as words too (于肝内, 余未见异常): there the opening says less
_UNKNOWN = 15.0  # nats for a character that the dictionary lacks
_BARE = 6.0
"""Nats against a name where nothing speaks for one. Chosen on made-up reports and on 301 public Chinese texts: at 4.5
words such as 窦部 begin to go, above 6 more names are missed in phrases that hold none of the cues."""


class NameFinder:
    """Finds names; made once, since it reads a dictionary (`name_finder` keeps one a process)."""

    def __init__(self) -> None:
        self.words, self.given, self.surnames = read_dictionary()
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
        return self._known(text, [name for name in repeated if name not in self.words], removed)

    def _known(self, text: str, known: Iterable[str], removed: Callable[[str], None]) -> str:
        def replaced(match: re.Match[str]) -> str:
            removed("name")
            return PLACEHOLDER

        plain = text.casefold().replace("ı", "i")  # which patterns take for an i, and casefold does not
        forms = {form for name in known if _may_stand(name, plain) for form in _forms(name)}
        for pattern in sorted(forms, key=len, reverse=True):
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
            for length, price in self._names(text, at, start, end, found):
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

    def _names(
        self, text: str, at: int, start: int, end: int, found: list[tuple[int, int]]
    ) -> Iterable[tuple[int, float]]:
        """(length, nats) of every name that may start at `at`."""
        left = _left(text, at, start, found)
        if text[at] in self._starts:
            for surname in (text[at : at + 2], text[at : at + 1]):
                price = self.surnames.get(surname)
                if price is None or at + len(surname) > end:
                    continue
                for stop in range(at + len(surname), min(at + len(surname) + 2, end) + 1):
                    given = self._given(text[at + len(surname) : stop])
                    right = _right(text, stop, end, found)
                    if given is None and right < 6.0:
                        continue
                    if given is None:
                        right += 2.0  # 焦主任: nobody writes a title behind a surname by chance
                    yield stop - at, _BARE + price + (given or 0.0) - _evidence(left, right)
                double = text[at + 1 : at + 2]  # 张王晓明: a married couple's child with both surnames
                if len(surname) == 1 and double in self.surnames and at + 4 <= end:
                    given = (self._given(text[at + 2 : at + 4]) or 0.0) + self.surnames[double]
                    yield 4, _BARE + price + given - _evidence(left, _right(text, at + 4, end, found))
        dotted = _DOTTED.match(text, at, end)
        if (
            dotted
            and text[at] not in _NEVER_FIRST
            and not _EPONYM.match(text, dotted.end())
            and not _EPONYM.search(dotted.group())
        ):
            first = re.search(_DOT, dotted.group())
            for stop in range(at + (first.start() if first else 0) + 2, dotted.end() + 1):
                if text[stop - 1] not in _DOTS:
                    yield stop - at, -3.5 + 6.9 * (stop - at) - _evidence(left, _right(text, stop, end, found))
        if left >= 5.0 and text[at] not in _NEVER_FIRST:  # a name of a kind that no list knows: between 患者 and ，男
            for stop in range(at + 2, min(at + 5, end) + 1):
                right = _right(text, stop, end, found)
                if right >= 5.0 and text[at:stop] not in self.words:
                    yield stop - at, 8.0 + 6.5 * (stop - at) - _evidence(left, right)

    def _given(self, characters: str) -> float | None:
        if not characters:
            return None
        if len(characters) == 1:
            return 1.6 + self.given[0].get(characters, 8.5)
        return 0.3 + self.given[1].get(characters[0], 8.5) + self.given[2].get(characters[1], 8.5)


def _evidence(left: float, right: float) -> float:
    both = 1.5 if left and right else 0.0
    return left + right + both


def _left(text: str, at: int, start: int, found: list[tuple[int, int]]) -> float:
    """How much what stands before speaks for a name, in nats."""
    if at > start:
        before = text[max(start, at - 4) : at]
        if before.endswith(PERSONS):
            return 6.5
        if before[-1:] in "和与及" and any(stop == at - 1 for _, stop in found):
            return 6.5
        return 4.0 if before.endswith(HELPERS) else 2.5 if before.endswith(LINKS) else 0.0
    before = text[max(0, at - 12) : at].rstrip(" \u3000:：(（")
    if before.endswith(PERSONS):
        return 6.5
    if any(_LIST.fullmatch(text, stop, at) for _, stop in found):
        return 6.5
    if text[at - 1 : at] in (":", "："):
        return 3.5
    return 1.0 if text[at : at + 1] in _OPENERS else 2.0


def _right(text: str, at: int, end: int, found: list[tuple[int, int]]) -> float:
    """How much what follows speaks for a name, in nats."""
    if text.startswith(FOLLOWERS, at):
        return 8.5 if text.startswith(TITLES, at) else 5.0
    if any(_LIST.fullmatch(text, at, begin) for begin, _ in found if 0 <= begin - at < 5):
        return 6.5
    if _AFTER_NAME.match(text, at):
        return 6.0 if at == end or text[at] in "男女" else 2.0
    if text[at : at + 1] in ("〇", "○"):  # a year in Chinese digits goes on: 于二〇二四年
        return 0.0
    if at < end:
        return 5.0 if text.startswith(ACTS, at) else 2.5 if text.startswith(DEEDS, at) else 0.0
    if text[at : at + 1] in (" ", "\u3000") and text.startswith(FOLLOWERS, at + 1):
        return 8.5
    return 2.0


def _may_stand(name: str, text: str) -> bool:
    """Whether a text, casefolded, has the letters of any spelling of a name; a pattern costs more than this look."""
    groups = name.casefold().replace("＝", "=").split("=")
    return any(all(letter in text for letter in group if letter.isalpha()) for group in groups)


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
