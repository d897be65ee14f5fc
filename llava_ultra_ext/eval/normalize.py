"""What counts as the same text, stated once: the ``strict`` columns and closed answers read normalised text only.

`RULE` is the statement that goes into every scores file. Our choice throughout: the paper says only that answers and
truth are "tokenized separately"; LLaVA-Med's normalisation knows English punctuation only (`llava_med`).
"""

from __future__ import annotations

import re
import unicodedata

RULE = (
    "NFKC, lower case, x or * between numbers read as ×, punctuation to spaces except decimal points, %, signs and "
    "bracketed signs such as (+), one leading English article dropped, spaces beside Chinese characters dropped"
)

CJK = r"\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters that are words of their own in a text without spaces, for use in a regular expression's brackets."""

_TIMES = re.compile(r"(?<=\d)\s*[x*×]\s*(?=\d)")
# Kept: (+) and (-), which decide a diagnosis; the point of 3.5; signs. The rest of what is no letter or digit goes.
_PUNCTUATION = re.compile(r"(\([+-]{1,3}\)|(?<=\d)\.(?=\d))|[^\w\s%+×±°<>=]|_")
_ARTICLE = re.compile(r"^(?:a|an|the)\s+(?=\S)")
_SPACE_BESIDE_CJK = re.compile(rf"\s+(?=[{CJK}])|(?<=[{CJK}])\s+")
_CJK = re.compile(f"[{CJK}]")
# Words of an English sentence; abbreviations in capitals, units and X-Ray stand in Chinese answers too: CT, T2, 5 mm.
_ENGLISH = re.compile(r"(?<![A-Za-z0-9])(?!(?:mm|cm|ml|kg|pH)\b)[A-Za-z]?[a-z]+(?![A-Za-z0-9])")
_X_RAY = re.compile(r"\bx[- ]?rays?\b", re.IGNORECASE)


def normalise(text: str) -> str:
    """`text` by `RULE`; empty when nothing but punctuation is in it.

    Only a leading article is dropped: the last letter of "hepatitis A" is none.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = _TIMES.sub("×", text)
    text = _PUNCTUATION.sub(lambda match: match.group(1) or " ", text)
    text = _ARTICLE.sub("", " ".join(text.split()))
    return _SPACE_BESIDE_CJK.sub("", text)


def has_chinese(text: str) -> bool:
    """Whether any character is Chinese."""
    return _CJK.search(text) is not None


def has_english(text: str) -> bool:
    """Whether `text` holds an English word; abbreviations in capitals, units and "X-Ray" are none."""
    return _ENGLISH.search(_X_RAY.sub("", text)) is not None
