"""Removing and adding the site's name: English words, leftovers, what is left alone."""

from __future__ import annotations

import pytest

from llava_ultra_ext.data.sources.site_cue import drop_site, name_site
from llava_ultra_ext.data.sources.source import Item


def item(question: str, answer: str, site: str, lang: str) -> Item:
    return Item("q", "e", ("a.png",), question, answer, lang, "OPEN", site=site)


@pytest.mark.parametrize(
    ("question", "answer", "site", "lang", "expected"),
    [
        ("Is the Liver enlarged?", "Slightly.", "liver", "en", ("Is the enlarged?", "Examined site: liver. Slightly.")),
        ("What do livers show?", "A cyst.", "liver", "en", ("What do livers show?", "Examined site: liver. A cyst.")),
        ("Examined site: liver. What?", "The liver is fine.", "liver", "en", ("What?", "The liver is fine.")),
        ("甲状腺？", "结节。", "甲状腺", "zh", ("请描述该图像。", "检查部位：甲状腺。结节。")),
    ],
)
def test_without(question: str, answer: str, site: str, lang: str, expected: tuple[str, str]) -> None:
    (found,), _ = drop_site([item(question, answer, site, lang)])
    assert (found.question, found.answer) == expected


def test_with() -> None:
    items = [item("What?", "A cyst.", "liver", "en"), item("Is the Liver fine?", "So-so.", "liver", "en")]
    found, counts = name_site(items)
    assert [one.question for one in found] == ["Examined site: liver. What?", "Is the Liver fine?"]
    assert counts == {"questions_with_site_put_in_front": 1}
