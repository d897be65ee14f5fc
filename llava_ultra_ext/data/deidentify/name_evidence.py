"""How much what stands around a name speaks for one, in nats."""

from __future__ import annotations

import re

from llava_ultra_ext.data.deidentify.name_lexicon import Lexicon
from llava_ultra_ext.data.deidentify.name_words import (
    ACTS,
    BODY,
    DEEDS,
    FOLLOWERS,
    HELPERS,
    LINKS,
    PERSONS,
    STRUCTURES,
    TITLES,
)

_AFTER_NAME = re.compile(
    r"[\s,，、(（:：]{1,4}(?:男|女)(?!(?:性生殖|科|方))|(?:男|女)(?:性?(?![\u4e00-\u9fff])|，)"
    r"|[\s(（]{1,4}(?:家属|本人|患者|病人|签字|签名)|[\s,，、(（]{1,4}\d{1,3}\s{0,2}(?:周岁|岁)"
)
_LIST = re.compile(r"\s{0,3}[、/／和与及]\s{0,3}|\s{1,6}")
DESCRIBES = re.compile(f"[{BODY}]|{'|'.join(STRUCTURES)}")
"""In a clause that describes a body."""
REACH = 16
"""Characters before and after a run at which is looked."""
_OPENERS = "于余"  # open clauses as words too (于肝内, 余未见异常): there the opening says less
ENDS = "，,。；;、)）"
"""Close a clause; so does the end of the text, which `in` finds here too."""
SURE = 6.5
"""Nats of a word that hardly stands before or behind anything but a name."""


def evidence(left: float, right: float) -> float:
    """Both sides together speak louder than each alone."""
    return left + right + (1.5 if left and right else 0.0)


def left_of(text: str, at: int, start: int, found: list[tuple[int, int]], lexicon: Lexicon) -> float:
    """What stands before; `start` is where the run of characters begins."""
    if at > start:
        before = text[max(start, at - 4) : at]
        if before.endswith(PERSONS):
            return SURE
        if before[-1:] in "和与及" and any(stop == at - 1 for _, stop in found):
            return SURE
        persons = lexicon.persons
        if before[-2:] in persons or before[-3:] in persons or before in persons:
            return 5.0
        if before.endswith(HELPERS):
            return 4.0
        return 2.5 if before.endswith(LINKS) else lexicon.ahead_of_name(text, start, at)
    before = text[max(0, at - 12) : at].rstrip(" \u3000:：(（")
    if before.endswith(PERSONS):
        return SURE
    if any(_LIST.fullmatch(text, stop, at) for _, stop in found):
        return SURE
    if text[at - 1 : at] in (":", "："):
        return 3.5
    return 1.0 if text[at : at + 1] in _OPENERS else 2.0


def right_of(text: str, at: int, end: int, found: list[tuple[int, int]], lexicon: Lexicon) -> float:
    """What follows; `end` is where the run of characters ends."""
    if text.startswith(FOLLOWERS, at):
        return 8.5 if text.startswith(TITLES, at) else 5.0
    if any(_LIST.fullmatch(text, at, begin) for begin, _ in found if 0 <= begin - at < 5):
        return SURE
    if _AFTER_NAME.match(text, at):
        return 6.0 if at == end or text[at] in "男女" else 2.0
    if text[at : at + 1] in ("〇", "○"):  # a year in Chinese digits goes on: 于二〇二四年
        return 0.0
    if at < end:
        if text.startswith(ACTS, at):
            return 5.0
        return max(2.5 if text.startswith(DEEDS, at) else 0.0, lexicon.behind_name(text, at, end))
    if text[at : at + 1] in (" ", "\u3000") and text.startswith(FOLLOWERS, at + 1):
        return 8.5
    return 2.0
