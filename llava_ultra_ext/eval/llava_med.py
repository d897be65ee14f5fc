"""The ``llava_med`` family: what the evaluation of LLaVA-Med v1.0.0 computes, to stand beside published tables.

Its names mislead, and are kept: "exact match" is a precision over distinct words, precision and recall count a word as
often as the answer repeats it, BLEU-2 and BLEU-3 are of a single order, BLEU is not smoothed, so a perfect answer of
three tokens has about 0. Source: ``llava/eval/run_eval.py``, ``run_eval_batch.py`` and ``eval_metrics/`` of that tag,
and NLTK's ``sentence_bleu``; written anew from what they do.

A text is cut by the stated tokenizer first and its tokens are joined by spaces, which is all that LLaVA-Med sees.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence

from llava_ultra_ext.eval.metrics import MAX_ORDER, ngram_counts

BLEU_RULE = "mean of sentence BLEU, no smoothing, bleu_2 and bleu_3 of that order alone (NLTK sentence_bleu)"

_PUNCTUATION = frozenset(';/[]"{}()=+\\_-><@`,?!')
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"} | {
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you",
    "'s": "he how somebody someone that there what when where who why",
    "'re": "there they what why you",
    "n't've": "could had might should would",
    "'d've": "he it she somebody someone something there they we who you",
}
_CONTRACTIONS = {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all"} | {
    stem + ending.replace("'", "", 1): stem + ending for ending, stems in _ENDINGS.items() for stem in stems.split()
}
"""Without the first apostrophe -> with it, as VQA's evaluation restores them; rarer slang of its list is left out."""


def normalise(text: str) -> str:
    """``glossary.normalize_word``: English punctuation, articles and number words; Chinese is left as it is."""
    strip = bool(_COMMA_BETWEEN_DIGITS.search(text))
    cleaned = text
    for mark in _PUNCTUATION & set(text):
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or strip else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned).lower().split()]
    kept = [_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(kept).replace(",", "")


def exact_match(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """``calculate_exactmatch``: distinct words of the truth that the answer holds, over the words of the answer."""
    held = set(predicted) & set(gold)
    return len(held) / len(predicted) if predicted else 0.0


def overlap(predicted: Sequence[str], gold: Sequence[str]) -> tuple[float, float, float]:
    """``calculate_f1score``: F1, precision, recall; a word in both counts as often as the answer has it."""
    own, other = Counter(predicted), Counter(gold)
    hits = sum(count for word, count in own.items() if word in other)
    if not hits:
        return 0.0, 0.0, 0.0
    missed = sum(count for word, count in other.items() if word not in own)
    precision, recall = hits / len(predicted), hits / (hits + missed)
    return 2 * precision * recall / (precision + recall), precision, recall


def sentence_bleu(predicted: Sequence[str], gold: Sequence[str]) -> list[float]:
    """NLTK's ``sentence_bleu`` of one reference without smoothing, for LLaVA-Med's four sets of weights.

    Returns:
        order 1 alone, order 2 alone, order 3 alone, orders 1 to 4 with equal weights; 0 to 1.
    """
    counts = ngram_counts(predicted, gold)
    correct, total = counts[:MAX_ORDER], counts[MAX_ORDER : 2 * MAX_ORDER]
    if not correct[0]:
        return [0.0] * 4
    penalty = 1.0 if len(predicted) > len(gold) else math.exp(1 - len(gold) / len(predicted))
    # NLTK puts the smallest float where an order has no match.
    logs = [math.log(c / t) if c else math.log(sys.float_info.min) for c, t in zip(correct, total, strict=True)]
    return [penalty * math.exp(value) for value in (*logs[:3], math.fsum(logs) / MAX_ORDER)]


def statistics(predicted: Sequence[str], gold: Sequence[str]) -> list[float]:
    """One question's figures in the order of `metrics.FIGURES`, 0 to 1.

    Args:
        predicted: tokens of the answer as a tokenizer gives them, not normalised.
        gold: likewise of the truth.
    """
    # LLaVA-Med normalises in `evaluate` and again inside its exact match and F1.
    own, other = normalise(" ".join(predicted)), normalise(" ".join(gold))
    twice, truth = normalise(own).split(), normalise(other).split()
    return [
        exact_match(twice, truth),
        *overlap(twice, truth),
        *sentence_bleu(own.split(), other.split()),
    ]


def open_hit(predicted: str, gold: str) -> bool:
    """``run_eval_batch.py``'s open accuracy, and its closed one: the truth is a substring of the answer."""
    return normalise(gold.lower()) in normalise(predicted.lower())


def yes_no_hit(predicted: str, gold: str) -> bool:
    """``run_eval.py``'s closed accuracy: as `open_hit`, but wrong where the answer holds neither "yes" nor "no"."""
    answer = normalise(predicted.lower())
    return ("yes" in answer or "no" in answer) and normalise(gold.lower()) in answer
