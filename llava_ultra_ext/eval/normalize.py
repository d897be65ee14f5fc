"""What counts as the same text, stated once: the ``strict`` columns and closed answers read normalised text only.

`RULE` is the statement that goes into every scores file. Our choice throughout: the paper says only that answers and
truth are "tokenized separately"; LLaVA-Med's normalisation knows English punctuation only (`llava_med`).
"""

from __future__ import annotations

import re
import unicodedata

from llava_ultra_ext.data.languages import BRACKETED_SIGN, CJK, SIGNS

RULE = (
    "NFKC, lower case, x or * between numbers (also after mm or cm) read as ×, punctuation to spaces except decimal "
    "points, %, + and the like, bracketed signs such as (-) and a minus that ends the text, one leading English "
    "article dropped, spaces beside Chinese characters dropped"
)

_TIMES = re.compile(r"(\d(?:\s*[mc]m)?)\s*[x*×]\s*(?=\d)")
_MINUS = str.maketrans("\u2212", "-")  # NFKC leaves the minus sign of mathematics as it is
_BRACKETED = re.compile(BRACKETED_SIGN)
# Kept: (+) and (-), which decide a diagnosis, and so does the minus of "HP -"; the point of 3.5; signs. The rest of
# what is no letter or digit goes. Our choice: a bare minus counts at the end of a text only, since elsewhere it cannot
# be told from a range (3-5), a compound (follow-up; pre-, intra- and postoperative) or a dash; alone it says nothing,
# since tables fill empty cells with it.
_PUNCTUATION = re.compile(rf"(\([+-]{{1,3}}\)|(?<=\d)\.(?=\d)|(?<=[^\W_])\s*-{{1,3}}(?=[\W_]*$))|[^\w\s{SIGNS}]|_")
_ARTICLE = re.compile(r"^(?:a|an|the)\s+(?=\S)")
_SPACE_BESIDE_CJK = re.compile(rf"\s+(?=[{CJK}])|(?<=[{CJK}])\s+")


def normalise(text: str) -> str:
    """`text` by `RULE`; empty when nothing but punctuation is in it (`data.languages.says_nothing`).

    Only a leading article is dropped: the last letter of "hepatitis A" is none.
    """
    text = unicodedata.normalize("NFKC", text).translate(_MINUS).lower()
    text = _BRACKETED.sub(r"(\1)", _TIMES.sub(r"\1×", text))
    text = _PUNCTUATION.sub(lambda match: match.group(1) or " ", text)
    text = _ARTICLE.sub("", " ".join(text.split()))
    return _SPACE_BESIDE_CJK.sub("", text)
