"""The dictionary of sites: hospitals' words, the longest first; a user's file; one place for the phantom too."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_ultra_ext.data.sites import load_sites
from llava_ultra_ext.data.sources.phantom import words


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("甲状腺彩超", "甲状腺"),
        ("双侧乳房", "乳腺"),
        ("肝胆", "肝脏"),
        ("泌尿系（双肾、输尿管）", "肾脏"),
        ("肾上腺", "肾上腺"),
        ("经阴道子宫附件", "子宫"),
        ("早孕", "胎儿"),
        ("双下肢静脉", "下肢静脉"),
        ("颈部淋巴结", "浅表淋巴结"),
        ("甲状腺及颈部淋巴结", "甲状腺、浅表淋巴结"),
        ("肝胆胰脾", "腹部"),
        ("腮腺", "涎腺"),
        ("ｔｃｄ", "颅脑"),
        ("心电图", ""),
        ("", ""),
    ],
)
def test_hospitals_words_become_one_name(given: str, expected: str) -> None:
    assert load_sites().normalise(given) == expected


def test_more_than_the_papers_twenty() -> None:
    assert len(load_sites().sites) > 20


def test_every_name_is_found_as_itself() -> None:
    sites = load_sites()
    assert {key: sites.keys_in(site.name) for key, site in sites.sites.items()} == {key: (key,) for key in sites.sites}


def test_the_phantom_uses_the_same_names() -> None:
    assert words.SITES["liver"] == load_sites().name("liver") == "肝脏"
    assert list(words.SITES) == ["thyroid", "breast", "liver", "kidney", "uterus", "prostate"]


def test_own_file_adds_words_and_sites(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("breast: {words: [乳房钼靶区]}\ntongue: {name: 舌, words: [舌头]}\n", encoding="utf-8")
    sites = load_sites(str(own))
    assert (sites.normalise("乳房钼靶区"), sites.normalise("舌头"), sites.normalise("甲状腺")) == (
        "乳腺",
        "舌",
        "甲状腺",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tongue: {name: 舌, words: [肝脏]}", "stands under liver and tongue"),
        ("tongue: {name: 舌, word: [x]}", "allowed: name, words"),
        ("tongue: {words: [舌]}", "needs a `name`"),
        ("[1, 2]", "must map keys to sites"),
        ("a: {b: [", "is not YAML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_sites(str(own))
