"""Which language a text is in, Chinese or English, and whether it says anything at all.

Stated once for what makes gold files (``llava-ultra import``) and for what reads and scores them.
"""

from __future__ import annotations

import re
import unicodedata

CJK = r"\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters that are words of their own in a text without spaces, for use in a regular expression's brackets."""

SIGNS = "%+×±°<>="
"""Kept when punctuation goes, wherever they stand, for use in a regular expression's brackets."""

BRACKETED_SIGN = r"[(\[]\s*([+-]{1,3})\s*[)\]]"
"""(+) and (-), which decide a diagnosis."""

_CJK = re.compile(f"[{CJK}]")
# Words of an English sentence; abbreviations in capitals, units and X-Ray stand in Chinese answers too: CT, T2, 5 mm.
_ENGLISH = re.compile(r"(?<![A-Za-z0-9])(?!(?:mm|cm|ml|kg|pH)\b)[A-Za-z]?[a-z]+(?![A-Za-z0-9])")
_X_RAY = re.compile(r"\bx[- ]?rays?\b", re.IGNORECASE)
_SAID = re.compile(rf"[^\W_]|[{SIGNS}]|{BRACKETED_SIGN}")


def has_chinese(text: str) -> bool:
    """Whether any character is Chinese."""
    return _CJK.search(text) is not None


def has_english(text: str) -> bool:
    """Whether `text` holds an English word; abbreviations in capitals, units and "X-Ray" are none."""
    return _ENGLISH.search(_X_RAY.sub("", text)) is not None


def at_home(text: str, lang: str) -> bool:
    """Whether a text may stand in a sentence of a language: CT may in both, 甲状腺 not in English, thyroid not in zh.

    Args:
        text: a word or a few, such as the name of a site.
        lang: ``zh`` or ``en``.
    """
    if lang == "en":
        return not has_chinese(text)
    return has_chinese(text) or not has_english(text)


def says_nothing(text: str) -> bool:
    """Whether a text is empty or nothing but punctuation, so that its normalised form is empty."""
    return _SAID.search(unicodedata.normalize("NFKC", text).replace("\u2212", "-")) is None
