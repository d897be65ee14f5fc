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


@pytest.mark.parametrize(
    ("question", "site", "rest"),
    [
        ("请描述该甲状腺超声图像的所见。", "甲状腺", "请描述该超声图像的所见。"),
        ("甲状腺右叶有结节吗？", "甲状腺", "右叶有结节吗？"),
        ("甲状腺结节的位置？", "甲状腺", "结节的位置？"),
        ("检查部位：肝。大小如何？", "肝", "大小如何？"),
        ("这是肝吗？", "肝", "这是吗？"),
        ("肝B超怎么样？", "肝", "B超怎么样？"),
        ("肝、脾大小正常吗？", "肝", "、脾大小正常吗？"),
        ("描述肝的形态", "肝", "描述的形态"),
        # parts of longer words stay
        ("有肝硬化吗？", "肝", "有肝硬化吗？"),
        ("肝脏大小正常吗？", "肝", "肝脏大小正常吗？"),
        ("检查部位：肝脏。大小？", "肝", "检查部位：肝脏。大小？"),
        ("肝内胆管扩张吗？", "肝", "肝内胆管扩张吗？"),
        ("有脂肪肝吗？", "肝", "有脂肪肝吗？"),
        ("是甲状腺癌吗？", "甲状腺", "是甲状腺癌吗？"),
    ],
)
def test_a_chinese_site_goes_where_it_is_a_word_of_its_own(question: str, site: str, rest: str) -> None:
    (found,), counts = drop_site([item(question, "正常。", site, "zh")])
    assert found.question == rest
    assert counts["questions_with_site_removed"] == (rest != question)
    assert counts["questions_that_still_name_the_site"] == (site in rest)


def test_one_of_two_names_may_stay_and_is_counted() -> None:
    (found,), counts = drop_site([item("该肝超声图像有肝硬化吗？", "有肝硬化。", "肝", "zh")])
    assert found.question == "该超声图像有肝硬化吗？"
    assert counts["questions_with_site_removed"] == counts["questions_that_still_name_the_site"] == 1


def test_no_cue_before_a_text_in_another_language() -> None:
    items = [item("What?", "A cyst.", "甲状腺", "en"), item("这是什么？", "囊肿。", "thyroid", "zh")]
    assert name_site(items) == (items, {"questions_left_without_site_in_another_language": 2})
    found, counts = drop_site(items)
    assert found == items and counts["answers_left_without_site_in_another_language"] == 2
    named, counts = name_site([item("这是什么？", "血管。", "IVC", "zh")])
    assert named[0].question == "检查部位：IVC。这是什么？" and counts == {"questions_with_site_put_in_front": 1}


def test_with() -> None:
    items = [item("What?", "A cyst.", "liver", "en"), item("Is the Liver fine?", "So-so.", "liver", "en")]
    found, counts = name_site(items)
    assert [one.question for one in found] == ["Examined site: liver. What?", "Is the Liver fine?"]
    assert counts == {"questions_with_site_put_in_front": 1}
