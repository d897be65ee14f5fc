"""The words by which names are found: those that go with names, and how frequent words, surnames, given names are."""

from __future__ import annotations

import importlib.resources
import math
from collections import Counter

LONGEST = 7
"""Characters of the longest word that is looked up."""

_HERE = "llava_ultra_ext.data.deidentify"
_BODY = "肝胆胰脾肾肺胃肠膀胱脉腺瘤囊肿癌腔膜乳颈腹胸臂腿腰骨"
_NO_NAME = 14.0  # nats for one of these in a given name: nobody is called so
_CLINICAL = 8.0  # nats for a clinical word, whatever its length


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


_CUES = _cues()
TITLES = _CUES["TITLES"]
"""Follow a surname or a name."""
FOLLOWERS = (*TITLES, *_CUES["FOLLOWERS"])
"""Follow a whole name too."""
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


def read_dictionary() -> tuple[dict[str, float], tuple[dict[str, float], ...], dict[str, float]]:
    """Nats of words, of given names' characters (alone, first, second), and of surnames."""
    try:
        import jieba
    except ImportError as error:
        raise ImportError("Names are found with jieba's dictionary. pip install llava_ultra_ext[hospital].") from error
    singles, compounds = _surnames()
    starts = frozenset(singles)
    bearers: Counter[str] = Counter()
    rows = []
    with jieba.get_dict_file() as file:
        for line in file:
            word, count, tag = line.decode("utf-8").split()
            rows.append((word, int(count), tag))
    total = math.log(sum(count for _, count, _ in rows))
    words: dict[str, float] = {}
    given: tuple[Counter[str], ...] = (Counter(), Counter(), Counter())
    for word, count, tag in rows:
        if tag in ("nr", "nrfg") and 1 < len(word) <= 3 and word[0] in starts:
            if len(word) == 2:
                given[0][word[1]] += 1
            else:
                bearers[word[0]] += 1
                given[1][word[1]] += 1
                given[2][word[2]] += 1
        elif len(word) <= LONGEST and (tag not in ("nr", "nrfg") or len(word) == 1):
            words[word] = total - math.log(max(count, 1))
    for word in _clinical_words():
        words[word] = words.get(word, _CLINICAL) if len(word) == 1 else min(words.get(word, math.inf), _CLINICAL)
    given[0].update(given[1])  # few names of two characters are in the dictionary: 敏 stands in those of three
    given[0].update(given[2])
    sums = [sum(counts.values()) for counts in given]
    nats = tuple(
        {character: math.log(size) - math.log(count) for character, count in counts.items()}
        for counts, size in zip(given, sums, strict=True)
    )
    for characters in nats:
        characters.update(dict.fromkeys(_BODY, _NO_NAME))
    weights = {
        surname: bearers[surname] + 1 for surname in [*compounds, *singles]
    }  # a compound is as rare as the rarest
    everybody = math.log(sum(weights.values()))
    return words, nats, {surname: everybody - math.log(weight) for surname, weight in weights.items()}


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
