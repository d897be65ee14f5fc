"""Examined sites: one dictionary of what hospitals write, shared by reports, instructions and the phantom.

The paper has "more than 20 examination sites, such as heart, thyroid, breast, uterus, prostate" (4.1) and lists no
more. Our choice: the sites of ``sites.yaml``, in the words of Chinese request forms, and a user's own file beside it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llava_ultra_ext.data.json_lines import read_text

BUILT_IN = Path(__file__).with_name("sites.yaml")

FLAG = "--sites"


@dataclass(frozen=True)
class Site:
    """One examined site.

    Args:
        key: its English key.
        name: what records carry.
        words: what hospitals write, `name` included.
    """

    key: str
    name: str
    words: tuple[str, ...]


class SiteDictionary:
    """Finds sites in texts, by their longest words first.

    Args:
        sites: key -> site; no word belongs to two.

    Raises:
        ValueError: a word belongs to two sites.
    """

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = dict(sites)
        self._key_of: dict[str, str] = {}
        for site in sites.values():
            for word in site.words:
                known = self._key_of.setdefault(_folded(word), site.key)
                if known != site.key:
                    raise ValueError(f"{FLAG}: {word!r} stands under {known} and {site.key}. A word has one site.")
        longest_first = sorted(self._key_of, key=lambda word: (-len(word), word))
        self._pattern = re.compile("|".join(_whole_word(word) for word in longest_first) or r"(?!)")

    def keys_in(self, text: str) -> tuple[str, ...]:
        """Keys of the sites that a text names, each once, in the text's order."""
        found = (self._key_of[match.group()] for match in self._pattern.finditer(_folded(text)))
        return tuple(dict.fromkeys(found))

    def mask(self, text: str) -> str:
        """A text, NFKC, with every site's word replaced by its key in braces: what is left names no site."""
        return self._pattern.sub(lambda match: f"{{{self._key_of[match.group()]}}}", _folded(text))

    def normalise(self, text: str) -> str:
        """The site of an exam, from what the hospital wrote.

        Returns:
            The site's name; several sites in the text's order, joined by 、; empty: no site is known in it.
        """
        return "、".join(self.sites[key].name for key in self.keys_in(text))

    def name(self, key: str) -> str:
        """Name of a site by its key."""
        return self.sites[key].name


@functools.lru_cache(maxsize=8)
def load_sites(own_file: str | None = None) -> SiteDictionary:
    """The built-in sites, and those of a user's file.

    Args:
        own_file: YAML of the same form; a known key gets more words, and another name where it gives one.

    Raises:
        ValueError: the file is unreadable or of another form; the message names the key.
    """
    sites = _read(BUILT_IN, {})
    if own_file is not None:
        sites = _read(Path(own_file), sites)
    return SiteDictionary(sites)


def _read(path: Path, known: Mapping[str, Site]) -> dict[str, Site]:
    try:
        given = yaml.safe_load(read_text(path, FLAG, "a YAML file of sites"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise ValueError(f"{FLAG} {path}: is not YAML{where}. Write it like {BUILT_IN.name}.") from None
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{FLAG} {path}: must map keys to sites, `thyroid: {{name: 甲状腺, words: [甲状腺]}}`.")
    sites = dict(known)
    for key, entry in given.items():
        sites[str(key)] = _site(str(key), entry, sites.get(str(key)), path)
    return sites


def _site(key: str, entry: Any, known: Site | None, path: Path) -> Site:
    allowed = {"name", "words"}
    if not isinstance(entry, Mapping) or not set(entry) <= allowed:
        extra = sorted(map(str, set(entry) - allowed)) if isinstance(entry, Mapping) else [str(type(entry).__name__)]
        raise ValueError(f"{FLAG} {path}: {key} holds {', '.join(extra)}; allowed: name, words.")
    name, words = entry.get("name", known.name if known else None), entry.get("words", [])
    listed = isinstance(words, list) and all(isinstance(word, str) and word.strip() for word in words)
    if not isinstance(name, str) or not name.strip() or not listed:
        raise ValueError(f"{FLAG} {path}: {key} needs a `name` and a list of `words`, all of them texts.")
    before = known.words if known else ()
    return Site(key, name.strip(), tuple(dict.fromkeys((*before, name.strip(), *(word.strip() for word in words)))))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _whole_word(word: str) -> str:
    return rf"(?<![a-z]){re.escape(word)}(?![a-z])" if word.isascii() else re.escape(word)
