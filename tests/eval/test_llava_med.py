"""The llava_med family: what LLaVA-Med v1.0's evaluation gives, with the working, and NLTK's agreement."""

from __future__ import annotations

import random
import warnings

import pytest
from nltk.translate.bleu_score import sentence_bleu

from llava_ultra_ext.eval import llava_med
from llava_ultra_ext.eval.metrics import FIGURES, ngram_counts
from llava_ultra_ext.eval.tokenizers import tokenizer

ANSWER, TRUTH = "甲状腺右叶见低回声结节", "超声所见甲状腺右叶可见低回声结节"


def figures(predicted: str, gold: str, name: str = "whitespace") -> dict[str, float]:
    cut = tokenizer(name)
    found = llava_med.statistics([cut(predicted.lower())], [cut(gold.lower())])[0]
    return {key: 100 * value for key, value in zip(FIGURES, found, strict=True)}


@pytest.mark.parametrize("name", ["whitespace", "char", "jieba", "zh", "13a"])
def test_lung_and_left_lung(name: str) -> None:
    # "exact match" is the share of the answer's words that the truth holds
    assert figures("lung", "left lung", name)["em"] == 100
    assert figures("left lung", "lung", name)["em"] == 50
    # lung ×4, heart against lung: true positives are counted in the answer: P 4/5, R 4/(4+0), F1 1.6/1.8
    repeated = figures("lung lung lung lung heart", "lung", name)
    assert (repeated["precision"], repeated["recall"]) == pytest.approx((80, 100))
    assert repeated["f1"] == pytest.approx(88.8889, abs=1e-3)


def test_the_example_pair_by_characters() -> None:
    # brevity penalty exp(1 - 16/11) = 0.634736; single orders 11/11, 9/10, 7/9; uniform ⁴√(0.9·7/9·5/8)
    # em: 11 distinct characters of the truth among the answer's 11; R 11/(11+3): 超, 所, 可 are missed
    found = figures(ANSWER, TRUTH, "char")
    assert found["bleu_1"] == pytest.approx(63.5, abs=0.05)
    assert found["bleu_2"] == pytest.approx(57.1, abs=0.05)
    assert found["bleu_3"] == pytest.approx(49.4, abs=0.05)
    assert found["bleu"] == pytest.approx(51.6, abs=0.05)
    assert (found["em"], found["precision"]) == (100, 100)
    assert found["recall"] == pytest.approx(78.5714, abs=1e-3)
    assert figures(ANSWER, TRUTH, "zh") == pytest.approx(found)


def test_the_example_pair_by_jieba_as_it_is_installed() -> None:
    # 甲状腺|右叶见|低|回声|结节 (5) against 超声|所|见|甲状腺|右叶|可见|低|回声|结节 (9)
    # brevity penalty exp(1 - 9/5) = 0.449329
    # 4/5, 2/4 (低 回声, 回声 结节), 1/3 (低 回声 结节), 0/2
    found = figures(ANSWER, TRUTH, "jieba-plain")
    assert found["bleu_1"] == pytest.approx(35.9, abs=0.05)
    assert found["bleu_2"] == pytest.approx(22.5, abs=0.05)
    assert found["bleu_3"] == pytest.approx(15.0, abs=0.05)
    assert found["bleu"] == pytest.approx(0, abs=1e-6)


def test_the_example_pair_by_jieba_with_our_terms() -> None:
    # 甲状腺|右叶|见|低回声|结节 (5) against 超声所见|甲状腺|右叶|可见|低回声|结节 (6): penalty exp(1 - 6/5) = 0.818731
    # 4/5, 2/4 (甲状腺 右叶, 低回声 结节), 0/3: the dictionary closes the gap of one differing cut
    found = figures(ANSWER, TRUTH, "jieba")
    assert found["bleu_1"] == pytest.approx(65.4985, abs=1e-3)
    assert found["bleu_2"] == pytest.approx(40.9365, abs=1e-3)


def test_unsegmented_chinese_is_one_word() -> None:
    assert figures(ANSWER, TRUTH, "13a") == dict.fromkeys(FIGURES, 0.0)


def test_a_perfect_short_answer_has_no_bleu() -> None:
    def exact(text: str) -> list[float]:
        return [value / 100 for key, value in figures(text, text).items() if key.startswith("bleu")]

    assert exact("lung") == pytest.approx([1, 0, 0, 1.8e-231], rel=0.05)  # the smallest float ^ 3/4
    assert exact("left upper lung")[3] == pytest.approx(1e-77, rel=0.3)  # ^ 1/4
    assert exact("left upper lung nodule") == pytest.approx([1, 1, 1, 1])


def test_normalisation_is_for_english() -> None:
    assert llava_med.normalise("the left-lung, (two) masses.") == "left lung 2 masses"
    assert llava_med.normalise("no x-ray; none") == "no x ray 0"
    assert llava_med.normalise("3.5 1,200") == "3.5 1200"
    assert llava_med.normalise("dont wont itd've") == "don't won't it'd've"
    assert llava_med.normalise("低回声，结节。") == "低回声，结节。"


def test_closed_answers_by_substring() -> None:
    assert llava_med.yes_no_hit("Yes, it is.", "yes") and not llava_med.yes_no_hit("no", "yes")
    assert llava_med.yes_no_hit("normal", "no")  # why the strict column has its own rule
    assert not llava_med.yes_no_hit("MRI", "MRI") and llava_med.open_hit("MRI", "MRI")
    assert llava_med.open_hit("不是", "是")


@pytest.mark.parametrize("seed", range(30))
def test_bleu_is_nltks(seed: int) -> None:
    generator = random.Random(seed)
    predicted, gold = ([generator.choice("abcd") for _ in range(generator.randint(1, 9))] for _ in range(2))
    weights = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0.25, 0.25, 0.25, 0.25))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK says that an order without a match makes the score 0
        expected = [sentence_bleu([gold], predicted, weights=weight) for weight in weights]
    found = llava_med.sentence_bleu(ngram_counts([predicted], [gold]))[0]
    assert list(found) == pytest.approx(expected, rel=1e-9, abs=0)


def test_an_empty_answer_scores_0() -> None:
    assert figures("", "lung") == dict.fromkeys(FIGURES, 0.0)
    assert figures("the", "lung") == dict.fromkeys(FIGURES, 0.0)
