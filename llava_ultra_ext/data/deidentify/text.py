"""De-identification of a report's free text (findings, diagnosis, history).

Full-width digits become ordinary ones. The order: structured identifiers (`structured`: they hold dates and names),
dates (`dates`), names (`names`). The text is read again until nothing changes, so that cleaning a cleaned text (with
shift 0: its dates have moved) changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llava_ultra_ext.data.deidentify.dates import shift_dates
from llava_ultra_ext.data.deidentify.names import name_finder
from llava_ultra_ext.data.deidentify.structured import remove_structured

GROWTH = 4
"""A cleaned text has at most this many times the characters of the text: a surname becomes ``[姓名]``."""

SHORTEST_NUMBER = 5
"""Characters of a known number that is looked for in texts."""

_DIGITS = str.maketrans("０１２３４５６７８９", "0123456789")
_NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}  # full-width signs to ASCII
_PASSES = 8  # two are usual: what was removed can uncover a name beside it


@dataclass(frozen=True)
class CleanText:
    """A text without identifiers.

    Args:
        text: what is left, with placeholders such as ``[姓名]`` and moved dates.
        removed: kind (`audit.KINDS`) -> how often; dates of another pass are not counted again.
    """

    text: str
    removed: Mapping[str, int]


def clean_text(
    text: str, shift_days: int, known_names: Iterable[str] = (), known_numbers: Iterable[str] = ()
) -> CleanText:
    """Remove names, numbers, addresses; move dates; cap ages at 90.

    Args:
        text: Chinese free text.
        shift_days: of `PatientKey`; the same for all texts of a patient. 0 for a text whose dates have been moved.
        known_names: of the record's own header (patient, physicians), in any spelling.
        known_numbers: of the record's own header (patient id, accession number); each goes wherever it stands, whatever
            its form. One of less than `SHORTEST_NUMBER` characters could be a measurement, and stays.

    Raises:
        ImportError: without jieba, named with the extra that brings it.
    """
    known = [name for name in known_names if name.strip()]
    removed: Counter[str] = Counter()
    current, shift = _without(text.translate(_DIGITS), known_numbers, removed), shift_days
    for turn in range(_PASSES):
        counts: Counter[str] = Counter()

        def count(kind: str, counts: Counter[str] = counts) -> None:
            counts[kind] += 1

        before = current
        current = remove_structured(current, count)
        current = shift_dates(current, shift, count)
        current = name_finder().remove(current, known, count)
        if turn:
            del counts["date"]
        removed += counts
        if current == before and turn:
            break
        shift = 0
    return CleanText(current, dict(sorted(removed.items())))


def _without(text: str, numbers: Iterable[str], removed: Counter[str]) -> str:
    """Without the record's own numbers, in half-width or full-width signs."""
    plain = _narrow(text)
    for number in sorted({number.strip() for number in numbers}, key=lambda one: (-len(one), one)):
        if len(number) < SHORTEST_NUMBER or not any(sign.isdigit() for sign in number) or _narrow(number) not in plain:
            continue
        signs = "".join(_either_width(sign) for sign in number)
        text, count = re.subn(
            rf"(?<![A-Za-z0-9])(?<!\d\.){signs}(?![A-Za-z0-9]|\.\d)", "[编号]", text, flags=re.IGNORECASE
        )
        removed.update({"number": count} if count else {})
    return text


def _narrow(text: str) -> str:
    return text.translate(_NARROW).casefold()


def _either_width(sign: str) -> str:
    wide = chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign
    return f"(?:{re.escape(sign)}|{wide})" if wide != sign else re.escape(sign)
