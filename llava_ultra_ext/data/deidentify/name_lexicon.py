"""How frequent words, surnames and given names are, and what a word beside a name says for it.

Everything is counted in jieba's dictionary; frequencies are given in nats, minus the logarithm of a share. Where it
says nothing of what a report needs, the price is our choice, made on made-up texts (`tests/data/deidentify`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from llava_ultra_ext.data.deidentify.name_words import (
    NEVER_GIVEN,
    PERSON_ENDS,
    clinical_words,
    cue_words,
    read_surnames,
)

LONGEST = 7
"""Characters of the longest word that is looked up."""

_NO_NAME = 14.0  # nats for a character of no given name in one
_CLINICAL = 8.0  # nats for a clinical word, whatever its length
_NAME_TAGS = frozenset(["nr", "nrfg"])
_PARTICLE_TAGS = frozenset(
    ["p", "c", "d", "u", "uj", "ul", "uv", "uz", "ug", "ud", "m", "mg", "q", "f", "r", "rg", "y", "k", "t"]
)
_LONE = 1.5  # nats more for a character on its own that is no particle: words of today have two or more
_LONE_SURNAME = 4.0  # and where it is a surname
_CALLED = 2.0  # nats more for a word that the dictionary calls a name: 谢谢 and 明白 are such, and some names
_CALLED_LONG = 6.0  # of three characters or more
_PURE = 6.0  # and where nearly all words that begin so are names: 王明 is hardly a word
_PURITY = 0.8
_PREPOSITION = 3.0  # nats more of a surname that is a preposition far more often
_COMPOUND = 5.0  # nats of a compound surname: few bear one, but two characters are seldom there by chance
_COMPOUND_WORD = 4.0  # more where it is a word as well (东方)
_BEHIND = {"v": 2.0, "vn": 1.0, "d": 2.0, "p": 2.0, "c": 1.5, "u": 1.5, "uj": 2.0, "t": 1.5, "a": 0.5}
_AHEAD = {"v": 1.5, "p": 1.5, "t": 1.5}
_PLACE = 2.0  # nats of a department or hospital before a name (妇科张芳)
"""Kind of a word -> what it says, in nats, for a name before it, and for one behind it."""

_Row = tuple[str, int, str]
"""Word, count, kind."""


@dataclass(frozen=True)
class Lexicon:
    """Nats of words, of given names and of surnames; and what a word beside a name says for it.

    Args:
        words: word -> nats.
        given: character -> nats, alone, first and second of two.
        surnames: surname -> nats.
        behind: word -> nats for a name before it.
        ahead: word -> nats for a name behind it.
        names: words that the dictionary calls names.
        persons: words for persons.
        terms: clinical words and the words that go with names.
    """

    words: dict[str, float]
    given: tuple[dict[str, float], ...]
    surnames: dict[str, float]
    behind: dict[str, float]
    ahead: dict[str, float]
    names: frozenset[str]
    persons: frozenset[str]
    terms: frozenset[str]

    def behind_name(self, text: str, at: int, end: int) -> float:
        """How much the longest word that begins at `at` speaks for a name before it."""
        for stop in range(min(at + 4, end), at, -1):
            if text[at:stop] in self.words:
                return self.behind.get(text[at:stop], 0.0)
        return 0.0

    def ahead_of_name(self, text: str, start: int, at: int) -> float:
        """How much the longest word that ends at `at` speaks for a name behind it."""
        for begin in range(max(start, at - 4), at):
            if text[begin:at] in self.words:
                return self.ahead.get(text[begin:at], 0.0)
        return 0.0


def read_dictionary() -> Lexicon:
    """What jieba's dictionary says, with the words of `clinical_words.txt`, `name_cues.txt` and `surnames.txt`.

    Raises:
        ImportError: without jieba, named with the extra that brings it.
    """
    rows = _rows()
    singles, compounds = read_surnames()
    clinical, cues = clinical_words(), cue_words()
    words = _words(rows, frozenset(singles), clinical)
    for word in clinical | cues:
        words[word] = words.get(word, _CLINICAL) if len(word) == 1 else min(words.get(word, math.inf), _CLINICAL)
    given, bearers = _called(rows, frozenset(singles))
    weights = {surname: bearers[surname] + 1 for surname in singles}
    everybody = math.log(sum(weights.values()))
    surnames = {surname: everybody - math.log(weight) for surname, weight in weights.items()}
    surnames |= {surname: surnames[surname] + _PREPOSITION for surname in "经向和由为能都那从" if surname in surnames}
    surnames |= {surname: _COMPOUND + (_COMPOUND_WORD if surname in words else 0.0) for surname in compounds}
    return Lexicon(
        words,
        given,
        surnames,
        behind={word: _BEHIND[kind] for word, _, kind in rows if kind in _BEHIND},
        ahead={word: _AHEAD[kind] for word, _, kind in rows if kind in _AHEAD}
        | {word: _PLACE for word, _, kind in rows if kind in ("n", "s") and len(word) > 1 and word[-1] in "科室院房诊"},
        names=frozenset(word for word, _, kind in rows if kind in _NAME_TAGS and len(word) > 1),
        persons=frozenset(word for word, _, kind in rows if kind == "n" and _is_person(word)),
        terms=clinical | cues,
    )


def _rows() -> list[_Row]:
    try:
        import jieba
    except ImportError as error:
        raise ImportError("Names are found with jieba's dictionary. pip install llava_ultra_ext[hospital].") from error
    rows = []
    with jieba.get_dict_file() as file:
        for line in file:
            word, count, kind = line.decode("utf-8").split()
            if len(word) <= LONGEST:
                rows.append((word, max(int(count), 1), kind))
    return rows


def _is_person(word: str) -> bool:
    return 1 < len(word) < 5 and word[-1] in PERSON_ENDS and word[0] not in "双两三单每"


def _words(rows: Iterable[_Row], surnames: frozenset[str], clinical: frozenset[str]) -> dict[str, float]:
    """Nats of every word; dearer what is likelier a name."""
    total = math.log(sum(count for _, count, _ in rows))
    begun = Counter(word[0] for word, _, _ in rows if 1 < len(word) < 4)
    names = Counter(word[0] for word, _, kind in rows if 1 < len(word) < 4 and kind in _NAME_TAGS)
    words = {}
    for word, count, kind in rows:
        nats = total - math.log(count)
        if len(word) > 1 and kind in _NAME_TAGS:
            nats += _CALLED if len(word) == 2 else _CALLED_LONG
            if word[0] in surnames:
                nats += _PURE * max(0.0, names[word[0]] / begun[word[0]] - _PURITY) / (1 - _PURITY)
        elif len(word) == 1 and kind not in _PARTICLE_TAGS and word not in clinical:
            nats += _LONE_SURNAME if word in surnames else _LONE
        words[word] = nats
    return words


def _called(rows: Iterable[_Row], surnames: frozenset[str]) -> tuple[tuple[dict[str, float], ...], Counter[str]]:
    """Nats of given names' characters (alone, first, second), and how many bear each surname."""
    bearers: Counter[str] = Counter()
    given: tuple[Counter[str], ...] = (Counter(), Counter(), Counter())
    for word, _, kind in rows:
        if kind not in _NAME_TAGS or word[0] not in surnames:
            continue
        if len(word) == 2:
            given[0][word[1]] += 1
        elif len(word) == 3:
            bearers[word[0]] += 1
            given[1][word[1]] += 1
            given[2][word[2]] += 1
    given[0].update(given[1])  # few names of two characters are in the dictionary: 敏 stands in those of three
    given[0].update(given[2])
    nats = []
    for counts in given:
        size = math.log(sum(counts.values()))
        nats.append({character: size - math.log(count) for character, count in counts.items()})
        nats[-1].update(dict.fromkeys(NEVER_GIVEN, _NO_NAME))
    return tuple(nats), bearers
