"""What counts as the same text, and how it is cut."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from llava_ultra_ext.data.languages import at_home, has_chinese, has_english, says_nothing
from llava_ultra_ext.eval.normalize import normalise
from llava_ultra_ext.eval.tokenizers import NAMES, tokenizer


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  双肺清晰，未见异常。 ", "双肺清晰未见异常"),
        ("ＣＴ平扫", "ct平扫"),
        ("The left lung.", "left lung"),
        ("a", "a"),
        ("hepatitis A", "hepatitis a"),
        ("3.5cm", "3.5cm"),
        ("12 * 8mm", "12×8mm"),
        ("12x8", "12×8"),
        ("12，8", "12 8"),
        ("HER2(+)", "her2(+)"),
        ("HER2（－）", "her2(-)"),
        ("50％", "50%"),
        ("HP -", "hp -"),
        ("HP-。", "hp-"),
        ("HER2（−）", "her2(-)"),
        ("HER2( - )", "her2(-)"),
        ("HER2 [+]", "her2 (+)"),
        ("幽门螺杆菌 −", "幽门螺杆菌-"),
        ("HBV DNA --", "hbv dna --"),
        ("12mm*8mm", "12mm×8mm"),
        ("12 mm x 8 mm", "12 mm×8 mm"),
        ("1.2cm×0.8cm×0.5cm", "1.2cm×0.8cm×0.5cm"),
        ("3x4x5", "3×4×5"),
        ("max 5", "max 5"),
        ("3-5", "3 5"),
        ("3−5 mm", "3 5 mm"),
        ("follow-up", "follow up"),
        ("pre-, intra- and postoperative", "pre intra and postoperative"),
        ("left lung - nodule", "left lung nodule"),
        ("- nodule", "nodule"),
        ("-", ""),
        ("---", ""),
        ("X-Ray", "x ray"),
        ("T2 加权 像", "t2加权像"),
        ("。！？…", ""),
        ("snake_case", "snake case"),
        ("\ufeff肺\u200b", "肺"),
    ],
)
def test_normalise(text: str, plain: str) -> None:
    assert normalise(text) == plain
    assert normalise(plain) == plain


def test_what_decides_a_diagnosis_is_kept() -> None:
    assert normalise("HER2(+)") != normalise("HER2(-)")
    assert len({normalise(f"HP{sign}") for sign in (" +", " -", "", "(+)", "(-)")}) == 5
    assert normalise("12mm*8mm") == normalise("12mm×8mm") == normalise("12mm x 8mm")
    assert normalise("3.5") != normalise("35")
    assert normalise("甲型肝炎") != normalise("乙型肝炎")
    assert normalise("hepatitis A") != normalise("hepatitis B")


@settings(deadline=None, max_examples=300)
@given(text=st.one_of(st.text(max_size=8), st.text("a-+()[]−_。 .5％ × HP肝", max_size=10)))
def test_what_says_nothing_normalises_to_nothing_and_nothing_else_does(text: str) -> None:
    assert says_nothing(text) == (normalise(text) == "")


def test_what_is_at_home_in_a_language() -> None:
    assert at_home("thyroid", "en") and at_home("甲状腺", "zh") and at_home("IVC", "zh") and at_home("IVC", "en")
    assert not at_home("甲状腺", "en") and not at_home("thyroid", "zh") and at_home("左心LV", "zh")


def test_languages() -> None:
    assert has_chinese("CT平扫") and not has_chinese("CT scan")
    for text in ("Lung", "Yes", "no", "The lung is clear.", "a"):
        assert has_english(text)
    for text in ("CT", "MRI", "T2", "X-Ray", "x ray", "5 mm", "3.5cm", "2", "肺"):
        assert not has_english(text)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("char", ["右", "叶", "t2", "低", "回", "声", "结", "节", "3.5", "×", "2.1", "cm", "her2", "(+)"]),
        ("jieba", ["右叶", "t2", "低回声", "结节", "3.5", "×", "2.1", "cm", "her2", "(", "+", ")"]),
        ("zh", ["右", "叶", "t2", "低", "回", "声", "结", "节", "3.5×2.1cm", "her2", "(", "+", ")"]),
        ("13a", ["右叶t2低回声结节3.5×2.1cm", "her2", "(", "+", ")"]),
        ("whitespace", ["右叶t2低回声结节3.5×2.1cm", "her2(+)"]),
    ],
)
def test_each_tokenizer_cuts_its_way(name: str, tokens: list[str]) -> None:
    assert tokenizer(name)("右叶t2低回声结节3.5×2.1cm her2(+)") == tokens


def test_our_terms_make_jieba_cut_alike() -> None:
    plain, ours = tokenizer("jieba-plain"), tokenizer("jieba")
    assert "右叶见" in plain("甲状腺右叶见低回声结节") and "右叶" in plain("甲状腺右叶可见低回声结节")
    for text in ("甲状腺右叶见低回声结节", "甲状腺右叶可见低回声结节"):
        assert {"右叶", "低回声", "结节"} <= set(ours(text))


@settings(deadline=None)
@given(st.text(alphabet="甲状腺右叶见低回声结节肝胆囊，。；：、！？（） \n()ab1.2-%", max_size=40))
def test_cutting_by_clauses_is_what_jieba_does_with_the_whole_text(text: str) -> None:
    assert tokenizer("jieba-plain")(text) == [token for token in _plain_jieba().lcut(text) if not token.isspace()]


@settings(deadline=None)
@given(st.text(alphabet="右叶见结节，。、（）〇㐀𠀀１ \n().,-;:!?'\"&%ab09", max_size=30))
def test_cutting_between_chinese_characters_is_what_sacrebleu_does_with_the_whole_text(text: str) -> None:
    assert tokenizer("zh")(text) == TokenizerZh()(text).split()


@functools.cache
def _plain_jieba():
    import jieba

    return jieba.Tokenizer()


def test_jiebas_own_dictionary_is_left_alone() -> None:
    import jieba

    tokenizer("jieba")
    assert jieba.lcut("低回声") == ["低", "回声"]


def test_an_unknown_tokenizer_lists_the_known() -> None:
    with pytest.raises(ValueError, match=", ".join(NAMES)):
        tokenizer("spacy")
