"""The words by which names are found: those that go with names, and how frequent words, surnames, given names are."""

from __future__ import annotations

import importlib.resources
import math
from collections import Counter
from dataclasses import dataclass

LONGEST = 7
"""Characters of the longest word that is looked up."""

_HERE = "llava_ultra_ext.data.deidentify"
BODY = "肝胆胰脾肾肺胃肠膀胱脉腺瘤囊肿癌腔膜乳颈腹胸臂腿腰骨"
"""Characters that only describe bodies; none of them is in a given name."""
STRUCTURES = ("回声", "血流", "结节", "斑块", "边界", "管腔", "探及", "显示", "光团", "声影", "子宫", "阴道", "直径", "大小", "心")
"""Words of findings without such a character."""
_NO_NAME = 14.0  # nats for one of these in a given name: nobody is called so
_CLINICAL = 8.0  # nats for a clinical word, whatever its length
_PARTICLES = "的了着过吗呢吧啊们是系未已曾均皆某等仍再此其该及与和也就还很您你我他她都能会说要让把由"
_TERMS = "样侧症痛肿病炎诊诉述孕产嘱返推抱吃喝做处"  # nobody is called so either
_CALLED = 2.0  # nats more for a word that the dictionary calls a name: 谢谢 and 明白 are such, and some names
PERSON_ENDS = "者员人师生士友妈爸爷奶婆姐妹哥弟兄姑姨舅叔伯侄甥婿媳夫妻嫂娘孙子"
_LONE = 1.5  # nats more for a character on its own that is no particle: words of today have two or more
_LONE_SURNAME = 4.0  # and where it is a surname
_PREPOSITION = 3.0  # nats more of a surname that is a preposition far more often
_COMPOUND = 5.0  # nats of a compound surname: few bear one, but two characters are seldom there by chance
_PARTICLE_TAGS = frozenset("p c d u uj ul uv uz ug ud m mg q f r rg y k t".split())
_BEHIND = {"v": 2.0, "vn": 1.0, "d": 2.0, "p": 2.0, "c": 1.5, "u": 1.5, "uj": 2.0, "t": 1.5, "a": 0.5}


def _lines(package: str, name: str) -> list[str]:
    text = importlib.resources.files(package).joinpath(name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _cues() -> dict[str, tuple[str, ...]]:
    sections: dict[str, tuple[str, ...]] = {}
    for line in _lines(_HERE, "name_cues.txt"):
        if line.isascii():
            section = line
        else:
            sections[section] = (*sections.get(section, ()), *line.split())
    return sections


NEVER_GIVEN = frozenset(BODY + _PARTICLES + _TERMS)
"""Characters of no given name."""
_CUES = _cues()
TITLES = _CUES["TITLES"]
"""Follow a surname or a name."""
FOLLOWERS = (*TITLES, *_CUES["FOLLOWERS"])
"""Follow a whole name too."""
BARE_TITLES = _CUES["BARE_TITLES"]
"""Follow a surname or a name, and are words of their own that stay."""
PERSONS = _CUES["PERSONS"]
"""Come before a name: strong evidence."""
HELPERS = _CUES["HELPERS"]
"""Come before a name, and before other words."""
LINKS = _CUES["LINKS"]
"""Come before anything, a name at times."""
ACTS = _CUES["ACTS"]
"""What people do: strong evidence for a name before it."""
DEEDS = _CUES["DEEDS"]
"""What others do too: weak evidence."""


@dataclass(frozen=True)
class Lexicon:
    """Nats of words, of given names' characters (alone, first, second), of surnames; and what a word says behind one.

    Args:
        words: word -> nats.
        given: character -> nats, alone, first and second of two.
        surnames: surname -> nats.
        behind: word -> nats for a name before it.
        names: words that the dictionary calls names.
        persons: words of the dictionary for persons.
        terms: clinical words and the words that go with names.
    """

    words: dict[str, float]
    given: tuple[dict[str, float], ...]
    surnames: dict[str, float]
    behind: dict[str, float]
    names: frozenset[str]
    persons: frozenset[str]
    terms: frozenset[str]

    def behind_name(self, text: str, at: int, end: int) -> float:
        """How much the longest word that begins at `at` speaks for a name before it."""
        for stop in range(min(at + 4, end), at, -1):
            if text[at:stop] in self.words:
                return self.behind.get(text[at:stop], 0.0)
        return 0.0


def read_dictionary() -> Lexicon:
    """Everything that is counted in jieba's dictionary, with the words of `clinical_words.txt` and `surnames.txt`."""
    try:
        import jieba
    except ImportError as error:
        raise ImportError("Names are found with jieba's dictionary. pip install llava_ultra_ext[hospital].") from error
    singles, compounds = _surnames()
    starts = frozenset(singles)
    clinical = frozenset(_clinical_words())
    bearers: Counter[str] = Counter()
    rows = []
    with jieba.get_dict_file() as file:
        for line in file:
            word, count, tag = line.decode("utf-8").split()
            rows.append((word, int(count), tag))
    total = math.log(sum(count for _, count, _ in rows))
    words: dict[str, float] = {}
    behind: dict[str, float] = {}
    names: set[str] = set()
    persons: set[str] = set()
    given: tuple[Counter[str], ...] = (Counter(), Counter(), Counter())
    for word, count, tag in rows:
        if len(word) > 1 and tag in ("nr", "nrfg"):
            names.add(word)
            words[word] = total - math.log(max(count, 1)) + (_CALLED if len(word) == 2 else 3 * _CALLED)
        if tag in ("nr", "nrfg") and 1 < len(word) <= 3 and word[0] in starts:
            if len(word) == 2:
                given[0][word[1]] += 1
            else:
                bearers[word[0]] += 1
                given[1][word[1]] += 1
                given[2][word[2]] += 1
        elif len(word) <= LONGEST and (tag not in ("nr", "nrfg") or len(word) == 1):
            words[word] = total - math.log(max(count, 1))
            if tag == "n" and 1 < len(word) < 5 and word[-1] in PERSON_ENDS and word[0] not in "双两三单每":
                persons.add(word)
            if tag in _BEHIND:
                behind[word] = _BEHIND[tag]
            if len(word) == 1 and tag not in _PARTICLE_TAGS and word not in clinical:
                words[word] += _LONE_SURNAME if word in starts else _LONE
    terms = clinical | {cue for cues in _CUES.values() for cue in cues if len(cue) > 1}
    for word in terms:
        words[word] = words.get(word, _CLINICAL) if len(word) == 1 else min(words.get(word, math.inf), _CLINICAL)
    given[0].update(given[1])  # few names of two characters are in the dictionary: 敏 stands in those of three
    given[0].update(given[2])
    sums = [sum(counts.values()) for counts in given]
    nats = tuple(
        {character: math.log(size) - math.log(count) for character, count in counts.items()}
        for counts, size in zip(given, sums, strict=True)
    )
    for characters in nats:
        characters.update(dict.fromkeys(NEVER_GIVEN, _NO_NAME))
    weights = {surname: bearers[surname] + 1 for surname in singles}
    everybody = math.log(sum(weights.values()))
    surnames = {surname: everybody - math.log(weight) for surname, weight in weights.items()}
    surnames |= {surname: surnames[surname] + _PREPOSITION for surname in "经向和由为能都那从" if surname in surnames}
    surnames |= {surname: _COMPOUND + (4.0 if surname in words else 0.0) for surname in compounds}
    return Lexicon(words, nats, surnames, behind, frozenset(names), frozenset(persons), terms)


def _surnames() -> tuple[list[str], list[str]]:
    """Single and compound surnames."""
    singles: list[str] = []
    compounds: list[str] = []
    for line in _lines(_HERE, "surnames.txt"):
        if " " in line:
            compounds += line.split()
        else:
            singles += list(line)
    return singles, compounds


def _clinical_words() -> list[str]:
    words = _lines("llava_ultra_ext.eval", "ultrasound_terms.txt")
    return words + [word for line in _lines(_HERE, "clinical_words.txt") for word in line.split()]
