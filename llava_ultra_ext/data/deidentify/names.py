"""Names of people in Chinese text.

Those behind a label (姓名：, 审核医师：), of the record's own header, and those that `name_search` finds in clauses. No
training, no network.

Our choice: rules and word lists in place of a statistical tagger, since what is found must not change with a download.
Of the taggers that do bring their weights in the package, on made-up phrases: jieba's finds 68 % of the names, THULAC
75 % (at a fifth of the speed, the terms of its weights unclear), jiagu 34 %, SnowNLP 40 %; these rules 99 %, and jieba
and THULAC knew none of the names that these missed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable

from llava_ultra_ext.data.deidentify.name_lexicon import read_dictionary
from llava_ultra_ext.data.deidentify.name_search import DOT, DOTS, NameSearch
from llava_ultra_ext.data.deidentify.name_words import PLACEHOLDER_WORDS, TITLES

PLACEHOLDER = "[姓名]"

_HAN = r"\u4e00-\u9fff"

_ROLE = (
    rf"(?:姓\s*名|[{_HAN}]{{0,4}}(?:医师|医生|技师|护士|大夫)(?:签名|签字)?|"
    r"(?:记录|检查|报告|审核|审签|审阅|复核|签发|操作|录入|书写|诊断|送检|申请|打字|陪同)(?:者|员|人)|[\u4e00-\u9fff]{2}者|[\u4e00-\u9fff]{0,2}专家|助手|"
    r"签名|签发|审阅|签字|联系人|监护人|Name|Operator|Physician|Doctor)"
)
_LABELLED = re.compile(
    rf"(?P<keep>{_ROLE}\s*[:：]\s*)(?P<name>[{_HAN}]+(?:{DOT}[{_HAN}]+)+|"
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


class NameFinder:
    """Finds names; made once, since it reads a dictionary (`name_finder` keeps one a process)."""

    def __init__(self) -> None:
        self.lexicon = read_dictionary()
        self.search = NameSearch(self.lexicon)

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
            spans = self.search.spans(text, found)
            if spans == found:
                break
            found = spans
        repeated = [text[start:end] for start, end in found if end - start > 1]
        for start, end in reversed(found):
            removed("name")
            text = text[:start] + PLACEHOLDER + text[end:]
        words, names = self.lexicon.words, self.lexicon.names
        return self._known(text, [name for name in repeated if name not in words or name in names], removed)

    def _known(self, text: str, known: Iterable[str], removed: Callable[[str], None]) -> str:
        def replaced(match: re.Match[str]) -> str:
            removed("name")
            return PLACEHOLDER

        # A form that was never filled in; its words would be removed from their own placeholders again and again.
        known = [name for name in known if name.strip() not in PLACEHOLDER_WORDS]
        plain = text.casefold().replace("ı", "i")  # which patterns take for an i, and casefold does not
        forms = {form for name in known if _may_stand(name, plain) for form in _forms(name)}
        for pattern in sorted(forms, key=len, reverse=True):
            text = re.sub(pattern, replaced, text, flags=re.IGNORECASE)
        return text


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
        if re.fullmatch(rf"[{_HAN}{DOTS}]+", joined):
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
