"""The strict family: literal numbers with their working, sacrebleu's agreement, and properties of any texts."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from llava_ultra_ext.eval import metrics
from llava_ultra_ext.eval.normalize import normalise
from llava_ultra_ext.eval.tokenizers import DEFAULT, tokenizer


def figures(pairs: list[tuple[str, str]], name: str) -> dict[str, float]:
    """Strict figures of (answer, truth) pairs."""
    cut = tokenizer(name)
    own, truths = ([normalise(text) for text in texts] for texts in zip(*pairs, strict=True))
    same = [text == truth for text, truth in zip(own, truths, strict=True)]
    rows = metrics.statistics(same, [cut(text) for text in own], [cut(text) for text in truths])
    found = metrics.figures(rows.sum(axis=0, keepdims=True), np.array([[len(rows)]]))[0]
    return dict(zip(metrics.FIGURES, map(float, found), strict=True))


def test_one_chinese_pair_by_characters() -> None:
    # answer 甲状腺右叶见低回声结节 (11 characters), truth 超声所见甲状腺右叶可见低回声结节 (16)
    # all 11 characters are in the truth: P 11/11, R 11/16, F1 2·1·0.6875/1.6875 = 0.814815
    # brevity penalty exp(1 - 16/11) = 0.634736
    # n-grams: 11/11; 9/10 (not 叶见); 7/9 (not 右叶见, 叶见低); 5/8 (not 腺右叶见, 右叶见低, 叶见低回)
    # BLEU-1 63.4736; BLEU-2 ·√0.9 = 60.2165; BLEU-3 ·∛(0.9·7/9 = 0.7) = 56.3583; BLEU ·⁴√(0.7·0.625 = 0.4375) = 51.6221
    found = figures([("甲状腺右叶见低回声结节", "超声所见甲状腺右叶可见低回声结节。")], "char")
    expected = {"em": 0, "f1": 81.4815, "precision": 100, "recall": 68.75}
    expected |= {"bleu_1": 63.4736, "bleu_2": 60.2165, "bleu_3": 56.3583, "bleu": 51.6221}
    assert found == pytest.approx(expected, abs=1e-3)


def test_one_english_pair() -> None:
    # "left lung shows a nodule" (the leading article goes) and "nodule in the left lung": 5 tokens each
    # shared left, lung, nodule: P = R = F1 = 3/5
    # n-grams 3/5; 1/4 (left lung); 0/3 -> smoothed 1/(2·3); 0/2 -> smoothed 1/(4·2); no brevity penalty
    # BLEU-1 60; BLEU-2 √(0.6·0.25) = 38.7298; BLEU-3 ∛(0.15/6) = 29.2402; BLEU ⁴√(0.025/8) = 23.6435
    found = figures([("The left lung shows a nodule.", "A nodule in the left lung")], "13a")
    expected = {"em": 0, "f1": 60, "precision": 60, "recall": 60}
    expected |= {"bleu_1": 60, "bleu_2": 38.7298, "bleu_3": 29.2402, "bleu": 23.6435}
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_corpus_of_short_answers() -> None:
    # 左肺/右肺: 1 of 2 characters, 0 of 1 pairs; 肝脏/肝脏: 2 of 2, 1 of 1; together 3/4 and 1/2, nothing longer
    # BLEU-1 75; BLEU-2 √(0.75·0.5) = 61.2372, and so are BLEU-3 and BLEU, whose effective order is 2
    # EM 1/2; F1, P, R (1/2 + 1)/2
    found = figures([("左肺", "右肺"), ("肝脏。", "肝脏")], "char")
    expected = {"em": 50, "f1": 75, "precision": 75, "recall": 75}
    expected |= {"bleu_1": 75, "bleu_2": 61.2372, "bleu_3": 61.2372, "bleu": 61.2372}
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_repeated_word_counts_as_often_as_the_truth_has_it() -> None:
    # lung ×4, heart against lung: 1 of 5 tokens is right, the whole truth is found: F1 2·0.2·1/1.2
    assert metrics.overlap(["lung"] * 4 + ["heart"], ["lung"]) == pytest.approx((1 / 3, 0.2, 1.0))


def test_a_part_is_no_exact_match() -> None:
    assert figures([("lung", "left lung")], "13a")["em"] == 0
    assert figures([("不正常", "正常")], "char")["em"] == 0


@pytest.mark.parametrize("seed", range(20))
def test_bleu_is_sacrebleus(seed: int) -> None:
    generator = random.Random(seed)
    texts = [["".join(generator.choices("abcd", k=generator.randint(0, 9))) for _ in range(6)] for _ in range(2)]
    predicted, gold = texts[0], [text or "a" for text in texts[1]]
    sums = metrics.ngram_counts([list(text) for text in predicted], [list(text) for text in gold]).sum(axis=0)
    for order in metrics.BLEU_ORDERS:
        judge = BLEU(tokenize="char", smooth_method="exp", effective_order=True, max_ngram_order=order)
        expected = judge.corpus_score(predicted, [gold]).score
        assert metrics.reported_bleu(sums, order) == pytest.approx(expected, abs=1e-9)
        assert metrics.corpus_bleu(np.stack([sums, sums]), order)[1] == pytest.approx(expected, abs=1e-9)


def test_many_samples_at_once_are_each_ones_figures() -> None:
    generator = np.random.default_rng(0)
    rows = metrics.statistics([False] * 5, [list("abcab"[: k + 1]) for k in range(5)], [list("abdab")] * 5)
    sums = np.stack([rows[generator.integers(5, size=5)].sum(axis=0) for _ in range(8)])
    together = metrics.figures(sums, np.full((8, 1), 5.0))
    for one, expected in zip(sums, together, strict=True):
        assert metrics.figures(one[None], np.array([[5.0]]))[0] == pytest.approx(expected, abs=1e-9)


LETTERS = "肺肝脾结节低回声左右正常不是有没 lungLeft三3.5%，。?-(+)"
TEXTS = st.text(LETTERS, min_size=1, max_size=14)
GOLD = TEXTS.filter(lambda text: bool(normalise(text)))


@pytest.mark.parametrize("name", DEFAULT)
@settings(deadline=None, max_examples=60)
@given(golds=st.lists(GOLD, min_size=1, max_size=5))
def test_a_perfect_prediction_scores_100_and_an_empty_one_0(golds: list[str], name: str) -> None:
    assert figures([(gold, gold) for gold in golds], name) == pytest.approx(dict.fromkeys(metrics.FIGURES, 100.0))
    assert figures([("", gold) for gold in golds], name) == dict.fromkeys(metrics.FIGURES, 0.0)


@pytest.mark.parametrize("name", DEFAULT)
@settings(deadline=None, max_examples=40)
@given(pairs=st.lists(st.tuples(TEXTS, GOLD), min_size=2, max_size=6), order=st.randoms())
def test_the_order_of_questions_changes_nothing(pairs: list[tuple[str, str]], order: random.Random, name: str) -> None:
    shuffled = pairs.copy()
    order.shuffle(shuffled)
    assert figures(shuffled, name) == pytest.approx(figures(pairs, name), abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(pairs=st.lists(st.tuples(TEXTS, GOLD), min_size=1, max_size=6))
def test_every_figure_lies_between_0_and_100(pairs: list[tuple[str, str]]) -> None:
    found = figures(pairs, "char")
    assert all(0 <= value <= 100 + 1e-9 and math.isfinite(value) for value in found.values())
    assert found["em"] <= found["f1"] + 1e-9
