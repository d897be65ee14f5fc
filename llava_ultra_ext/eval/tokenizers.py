"""How a text is cut before its words are compared. Chinese has no spaces, so every figure depends on this.

==============  =====================================================================================================
char            a Chinese character, a number (``3.5``), a word of Latin letters (``cm``, ``T2``), a sign is a token
jieba           jieba with the dictionary of ultrasound terms that the package ships (``ultrasound_terms.txt``)
jieba-plain     jieba as it is installed, for comparison with tables of others
zh, 13a         sacrebleu's; ``13a`` leaves unspaced Chinese in one piece, so it is for English
whitespace      nothing but spaces, as LLaVA-Med cuts
==============  =====================================================================================================

Our choice: ``char`` for Chinese, since jieba cuts ultrasound terms differently from one sentence to the next, and
``13a`` for English, which is sacrebleu's default.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from importlib import resources

from llava_ultra_ext.data.languages import CJK

Tokenize = Callable[[str], list[str]]

DEFAULT = ("char", "jieba", "zh", "13a")
"""Columns that are computed unless ``--tokenizer`` names others."""

OF_LANGUAGE = {"zh": "char", "en": "13a"}
"""The column that tables show for a language."""

TERMS = "ultrasound_terms.txt"

CLAUSES = 1 << 16
"""How many different clauses jieba's words are remembered of."""

_CLAUSE_END = re.compile(r"([，。；：、！？（）\s])")  # jieba never joins words across any of these
_CHINESE = re.compile("([\u4e00-\u9fa5])")  # some of those that sacrebleu knows; it cuts the others itself
_CHAR = re.compile(rf"[{CJK}]|\d+(?:\.\d+)?|(?:(?![{CJK}])\w)+|\([+-]+\)|\S")


def char(text: str) -> list[str]:
    """Chinese characters one by one; Latin words and numbers whole."""
    return _CHAR.findall(text)


def whitespace(text: str) -> list[str]:
    """What stands between spaces."""
    return text.split()


def _jieba(terms: bool) -> Tokenize:
    try:
        import jieba
    except ImportError:
        raise ValueError(_absent("jieba")) from None
    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.Tokenizer()  # of our own: the module's default one may have been changed by the caller
    if terms:
        with resources.files(__package__).joinpath(TERMS).open("rb") as file:
            cutter.load_userdict(file)

    # Cutting is nearly all of scoring's time, and reports say the same clauses again and again.
    @functools.lru_cache(maxsize=CLAUSES)
    def clause(text: str) -> list[str]:
        return [token for token in cutter.lcut(text) if not token.isspace()]

    return lambda text: [token for part in _CLAUSE_END.split(text) for token in clause(part)]


def _sacrebleu(name: str) -> Tokenize:
    try:
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
        from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh
    except ImportError:
        raise ValueError(_absent("sacrebleu")) from None
    if name == "13a":
        plain = Tokenizer13a()
        return lambda text: str(plain(text)).split()
    chinese = TokenizerZh()

    # sacrebleu puts spaces around each Chinese character and looks no further than one sign around it, so what stands
    # between two of them (a size, a comma) can be cut by itself, with a Chinese neighbour on either side, and once.
    @functools.lru_cache(maxsize=CLAUSES)
    def between(before: str, text: str, after: str) -> list[str]:
        return str(chinese(before + text + after)).split()[len(before) : None if not after else -1]

    def cut(text: str) -> list[str]:
        parts = _CHINESE.split(text.strip())  # run, character, run, character, …, run
        tokens: list[str] = []
        for place in range(0, len(parts), 2):
            if parts[place]:
                first, last = place == 0, place == len(parts) - 1
                tokens += between("" if first else "中", parts[place], "" if last else "中")
            tokens += parts[place + 1 : place + 2]
        return tokens

    return cut


def _absent(package: str) -> str:
    return f"{package} is not installed, which scoring needs. Install it: pip install 'llava_ultra_ext[eval]'"


_MAKERS: dict[str, Callable[[], Tokenize]] = {
    "char": lambda: char,
    "jieba": lambda: _jieba(terms=True),
    "jieba-plain": lambda: _jieba(terms=False),
    "zh": lambda: _sacrebleu("zh"),
    "13a": lambda: _sacrebleu("13a"),
    "whitespace": lambda: whitespace,
}
NAMES = tuple(_MAKERS)


@functools.cache
def tokenizer(name: str) -> Tokenize:
    """The tokenizer of a name.

    Raises:
        ValueError: there is none of that name, or its library is not installed.
    """
    if name not in _MAKERS:
        raise ValueError(f"--tokenizer {name}: no such tokenizer. Known: {', '.join(NAMES)}.")
    return _MAKERS[name]()
