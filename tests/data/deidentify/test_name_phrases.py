"""Names in phrases of histories and ward notes that are not the benchmark's, and sentences without names."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("faker", reason="makes the names")
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts" / "bench"))

from deidentify_cases import Maker

from llava_ultra_ext.data.deidentify.names import PLACEHOLDER, name_finder

HERE = Path(__file__).parent
NAMES_PER_PHRASE = 4


def lines(name):
    text = (HERE / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def found(text):
    return name_finder().remove(text, [], lambda kind: None)


def missed_share(phrases, seed):
    maker = Maker(seed)
    missed = planted = 0
    for phrase in (phrase for phrase in phrases for _ in range(NAMES_PER_PHRASE)):
        names = {"name": maker.name(), "name2": maker.name(), "title_name": maker.faker.last_name()}
        after = phrase.partition("{title_name}")[2][:2]
        text = found(phrase.format(age=40, **names))
        names["title_name"] += after
        for key in (key for key in names if f"{{{key}}}" in phrase):
            planted += 1
            missed += names[key] in text
    return missed / planted


def test_names_in_phrases_of_notes_are_found():
    phrases = lines("name_phrases.txt")
    split = phrases.index("HELD BACK")
    assert missed_share(phrases[1:split], 1) <= 0.015
    assert missed_share(phrases[split + 1 :], 2) <= 0.03


def test_sentences_without_names_stay():
    sentences = lines("nameless.txt")
    changed = [sentence for sentence in sentences if found(sentence) != sentence]
    assert len(sentences) > 100 and len(changed) <= 2, changed


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("王所已出院。", "[姓名]已出院。"),  # a character on its own is seldom a word, a surname less
        ("志愿者张号坐位。", "志愿者[姓名]坐位。"),  # a person by the kind of word
        ("尼玛·次仁称其父有肝癌病史。", "[姓名]称其父有肝癌病史。"),  # a disease later on is no eponym
        ("克罗恩·利氏综合征。", "克罗恩·利氏综合征。"),
        ("欧阳静轮椅推入。", "[姓名]轮椅推入。"),
        ("开单医生张。", "开单医生[姓名]。"),
        ("患者于3天前腹痛。", "患者于3天前腹痛。"),
        ("建议向医生咨询。", "建议向医生咨询。"),
        ("许可证，谢谢，毛发稀疏，高坠伤。", "许可证，谢谢，毛发稀疏，高坠伤。"),
        ("[张伟]", "[[姓名]]"),  # in brackets, but no placeholder
        ("[日期]，[姓名]，[床号]", "[日期]，[姓名]，[床号]"),
        ("王明，李强。", "[姓名]，[姓名]。"),
    ],
)
def test_what_makes_a_name(text, after):
    assert found(text) == after


def test_a_clause_that_describes_a_body_needs_more_for_a_name():
    from llava_ultra_ext.data.deidentify import name_search

    around = name_search._Around("", 0, 0, [], name_finder().lexicon, described=True)
    plain = name_search._Around("", 0, 0, [], name_finder().lexicon, described=False)
    assert around.bare > plain.bare


def test_the_same_run_in_another_place_is_judged_by_what_stands_there():
    assert found("白云，白云医生，白云。") == f"{PLACEHOLDER}，{PLACEHOLDER}医生，{PLACEHOLDER}。"
    assert found("见白云样回声。") == "见白云样回声。"
