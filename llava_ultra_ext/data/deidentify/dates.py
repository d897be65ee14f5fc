"""Dates in Chinese reports, moved by a patient's shift and written back in the style that they had.

Our choice: a year alone, a month alone and a day alone stay (2024年, 孕3月, 术后5日 are clinical); a time of day stays.
A year and month move as their 15th. A month and day without year move in `FREE_YEAR`. A date of birth, and what looks
like a date and is none (2月30日), is replaced by `PLACEHOLDER`.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable

PLACEHOLDER = "[日期]"
FREE_YEAR = 2020
"""The year of dates without one; a leap year, so that 2月29日 is a date."""

_Y = r"(?P<y>(?:1[89]|20|21)\d\d)"
_M, _D = r"(?P<m>1[0-2]|0?[1-9])", r"(?P<d>3[01]|[12]\d|0?[1-9])"
_HAN = "〇○零一二三四五六七八九十"
_TWO = r"(?P<y>\d\d)"
_BEFORE, _AFTER = r"(?<![\dA-Za-z])(?<!\d[.\-/:])", r"(?!\d)(?![.\-/]\d)"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_WORD = rf"(?P<w>(?:{'|'.join(_MONTHS)})[a-z]*)\.?"

_STYLES = [
    rf"(?P<y>[{_HAN}]{{4}})年(?P<m>[{_HAN}]{{1,3}})月(?:(?P<d>[{_HAN}]{{1,3}})[日号])?",
    rf"(?<!\d){_Y}\s*年\s*{_M}\s*月份?\s*{_D}(?P<end>\s*[日号])?(?!\d)",
    rf"(?<!\d){_TWO}\s*年\s*{_M}\s*月\s*{_D}(?P<end>\s*[日号])",
    rf"(?<!\d){_Y}\s*年\s*{_M}(?=\s*月)",
    rf"{_BEFORE}{_Y}(?P<s>\s?[-/.．－／—–_]\s?){_M}(?P=s){_D}{_AFTER}(?:(?=T\d)|(?![A-Za-z]))",
    rf"{_BEFORE}{_M}(?P<s>[-/.．－／]){_D}(?P=s){_Y}{_AFTER}",
    rf"{_BEFORE}{_D}(?P<s>[-/.．－／]){_M}(?P=s){_Y}{_AFTER}",
    rf"(?<![\dA-Za-z.]){_Y}(?P<m>0[1-9]|1[0-2])(?P<d>0[1-9]|[12]\d|3[01])(?![\dA-Za-z]|\.\d)",
    rf"{_BEFORE}{_TWO}(?P<s>[-/.．－／]){_M}(?P=s){_D}{_AFTER}(?!\s*(?:[a-zA-Z×xX*%°]|毫米|厘米))",
    rf"(?<![\d.]){_M}\s*月\s*{_D}(?P<end>\s*[日号])?(?!\d|\s*[天个])",
    rf"{_BEFORE}{_Y}(?P<s>[-/.．－／]){_M}{_AFTER}(?![A-Za-z%])",
    rf"(?<![A-Za-z]){_MONTH_WORD}\s+{_D}(?:st|nd|rd|th)?,?\s+{_Y}(?!\d)",
    rf"(?<!\d){_D}[\s-]{_MONTH_WORD},?[\s-]{_Y}(?!\d)",
]
_PATTERNS = [re.compile(style, re.IGNORECASE) for style in _STYLES]
_BORN = re.compile(
    r"(?:出生(?:年月日?|日期|于|时间)?|生日|生于|DOB|Birth\s?date)\s*[:：为是于]?\s*"
    r"(?P<date>[\d〇○零一二三四五六七八九十][\d〇○零一二三四五六七八九十\s年月\-/.]{2,18}[\d〇○零一二三四五六七八九十日号月年])",
    re.IGNORECASE,
)
_LOOKS = re.compile(
    rf"(?<!\d)\d{{4}}\s*年\s*\d{{1,2}}\s*月\s*\d{{1,2}}\s*[日号]|{_BEFORE}(?:19|20)\d\d([-/])\d{{1,2}}\1\d{{1,2}}{_AFTER}"
)


def shift_dates(text: str, shift_days: int, replaced: Callable[[str], None]) -> str:
    """Every date of a text moved.

    Args:
        text: any text.
        shift_days: by how many days; 0 for a text whose dates have been moved already.
        replaced: is told ``date`` for each date that was moved or taken out.
    """

    def born(match: re.Match[str]) -> str:
        replaced("date")
        return match.group()[: match.start("date") - match.start()] + PLACEHOLDER

    def moved(match: re.Match[str]) -> str:
        replaced("date")
        try:
            return _write(match, _read(match) + datetime.timedelta(days=shift_days))
        except (ValueError, OverflowError):
            return PLACEHOLDER

    # What one style has written must not be read again by the next: pieces are taken out and put back at the end.
    text = _BORN.sub(born, text)
    pieces: list[str] = []
    start = 0
    for match in _leftmost(text):
        pieces += [text[start : match.start()], moved(match)]
        start = match.end()
    return "".join([*pieces, text[start:]])


def _leftmost(text: str) -> list[re.Match[str]]:
    """Matches that do not overlap; an earlier style goes first."""
    taken: list[re.Match[str]] = []
    for pattern in [*_PATTERNS, _LOOKS]:
        for match in pattern.finditer(text):
            if all(match.end() <= other.start() or match.start() >= other.end() for other in taken):
                taken.append(match)
    return sorted(taken, key=lambda match: match.start())


def _read(match: re.Match[str]) -> datetime.date:
    parts = match.groupdict()
    if "m" not in parts and "w" not in parts:
        raise ValueError("looks like a date and is none")
    month = _MONTHS.index(parts["w"][:3].lower()) + 1 if "w" in parts else _number(parts["m"])
    year = _number(parts["y"]) if parts.get("y") else FREE_YEAR
    if year < 100:  # Our choice: the rule of POSIX, 69 to 99 are of the last century
        year += 1900 if year >= 69 else 2000
    return datetime.date(year, month, _number(parts["d"]) if parts.get("d") else 15)


def _write(match: re.Match[str], date: datetime.date) -> str:
    """The matched text with other numbers: as many digits as there were, leading zeros where there were any."""
    parts, text, offset = match.groupdict(), match.group(), match.start()
    values = {"y": date.year, "m": date.month, "d": date.day, "w": date.month}
    for name in sorted((name for name in values if parts.get(name)), key=match.start, reverse=True):
        old = parts[name]
        if name == "w":
            new = _MONTHS[date.month - 1].capitalize()
        elif old[0] in _HAN:
            new = _han(values[name], digits=name == "y")
        elif name == "y":
            new = f"{date.year % 100:02d}" if len(old) == 2 else f"{date.year:04d}"
        else:
            new = f"{values[name]:02d}" if _padded(match) else str(values[name])
        text = text[: match.start(name) - offset] + new + text[match.end(name) - offset :]
    return text


def _padded(match: re.Match[str]) -> bool:
    """Zeros are written where the date itself had any, and in 20240305, which has no separator."""
    parts = match.groupdict()
    return match.group().isdigit() or any((parts.get(name) or "x")[0] in "0０" for name in ("m", "d"))


def _number(text: str) -> int:
    if text[0] not in _HAN:
        return int(text)
    digits = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "○": 0}
    if "十" not in text:
        return int("".join(str(digits[character]) for character in text))
    tens, ones = text.split("十", 1)
    return 10 * (_number(tens) if tens else 1) + (_number(ones) if ones else 0)


def _han(value: int, digits: bool) -> str:
    plain = "".join("〇一二三四五六七八九"[int(digit)] for digit in str(value))
    if digits or value < 10:
        return plain
    tens, ones = divmod(value, 10)
    return ("" if tens == 1 else plain[0]) + "十" + (plain[1] if ones else "")
