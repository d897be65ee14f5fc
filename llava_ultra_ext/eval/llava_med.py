"""The ``llava_med`` family: what the evaluation of LLaVA-Med v1.0.0 computes, to stand beside published tables.

Its names mislead, and are kept: "exact match" is a precision over distinct words, precision and recall count a word as
often as the answer repeats it, BLEU-2 and BLEU-3 are of a single order, BLEU is not smoothed, so a perfect answer of
three tokens has about 0. Source: ``llava/eval/run_eval.py``, ``run_eval_batch.py`` and ``eval_metrics/`` of that tag,
and NLTK's ``sentence_bleu``; written anew from what they do.

A text is cut by the stated tokenizer first and its tokens are joined by spaces, which is all that LLaVA-Med sees.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

import numpy as np

from llava_ultra_ext.eval.metrics import MAX_ORDER, Array, ngram_counts

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
_WORDS = _NUMBERS | _CONTRACTIONS


def normalise(text: str) -> str:
    """``glossary.normalize_word``: English punctuation, articles and number words; Chinese is left as it is."""
    strip = bool(_COMMA_BETWEEN_DIGITS.search(text))
    cleaned = text
    for mark in _PUNCTUATION & set(text):
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or strip else " ")
    words = _PERIOD.sub("", cleaned).lower().split()
    return " ".join([_WORDS.get(word, word) for word in words if word not in _ARTICLES]).replace(",", "")


def exact_match(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """``calculate_exactmatch``: distinct words of the truth that the answer holds, over the words of the answer."""
    return len(set(predicted).intersection(gold)) / len(predicted) if predicted else 0.0


def overlap(predicted: Sequence[str], gold: Sequence[str]) -> tuple[float, float, float]:
    """``calculate_f1score``: F1, precision, recall; a word in both counts as often as the answer has it."""
    own, other = set(predicted), set(gold)
    hits = sum([word in other for word in predicted])
    if not hits:
        return 0.0, 0.0, 0.0
    missed = sum([word not in own for word in gold])
    precision, recall = hits / len(predicted), hits / (hits + missed)
    return 2 * precision * recall / (precision + recall), precision, recall


def sentence_bleu(counts: Array) -> Array:
    """NLTK's ``sentence_bleu`` of one reference without smoothing, for LLaVA-Med's four sets of weights.

    Args:
        counts: (n, 2 * MAX_ORDER + 2) of n questions, by `metrics.ngram_counts`.

    Returns:
        (n, 4): order 1 alone, order 2 alone, order 3 alone, orders 1 to 4 with equal weights; 0 to 1.
    """
    correct, total = counts[:, :MAX_ORDER], counts[:, MAX_ORDER : 2 * MAX_ORDER]
    own, other = counts[:, -2], counts[:, -1]
    penalty = np.where(own > other, 1.0, np.exp(1 - other / np.maximum(own, 1)))
    # NLTK puts the smallest float where an order has no match.
    logs = np.log(np.where(correct, correct / np.maximum(total, 1), sys.float_info.min))
    bleu = penalty[:, None] * np.exp(np.column_stack([logs[:, :3], logs.mean(axis=1)]))
    return np.where(correct[:, :1], bleu, 0.0)


def statistics(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> Array:
    """(n, figures): the figures of n questions in the order of `metrics.FIGURES`, 0 to 1.

    Args:
        predicted: tokens of the answers as a tokenizer gives them, not normalised.
        gold: likewise of the truths.
    """
    own, other = ([_normalised(tokens) for tokens in texts] for texts in (predicted, gold))
    words = [[exact_match(mine, true), *overlap(mine, true)] for (_, mine), (_, true) in zip(own, other, strict=True)]
    counts = ngram_counts([once for once, _ in own], [once for once, _ in other])
    return np.column_stack([np.array(words).reshape(-1, 4), sentence_bleu(counts)])


def _normalised(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words after one and after two passes: LLaVA-Med normalises in `evaluate` and again in its exact match and F1."""
    text = " ".join(tokens)
    once = normalise(text)
    words = once.split()
    return words, words if once == text else normalise(once).split()


def open_hit(predicted: str, gold: str) -> bool:
    """``run_eval_batch.py``'s open accuracy, and its closed one: the truth is a substring of the answer."""
    return normalise(gold.lower()) in normalise(predicted.lower())


def yes_no_hit(predicted: str, gold: str) -> bool:
    """``run_eval.py``'s closed accuracy: as `open_hit`, but wrong where the answer holds neither "yes" nor "no"."""
    answer = normalise(predicted.lower())
    return ("yes" in answer or "no" in answer) and normalise(gold.lower()) in answer
