"""The ``strict`` family: figures that are what their names say. Pure functions of token lists and arrays.

em, f1, precision and recall are means over questions; BLEU is sacrebleu's corpus BLEU, cumulative up to its order.
Our choice: corpus BLEU, since the sentence BLEU of an answer of two characters is made of smoothing. Smoothing is
sacrebleu's ``exp`` and the order is the effective one, without which a perfect answer of three tokens scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FIGURES = ("em", "f1", "precision", "recall", "bleu_1", "bleu_2", "bleu_3", "bleu")
"""What both families report, in this order, 0 to 100. ``bleu_2`` and ``bleu_3`` differ: see `llava_med`."""

MAX_ORDER = 4
BLEU_ORDERS = (1, 2, 3, MAX_ORDER)
SMOOTHING = "exp"

MEANS = len(FIGURES) - len(BLEU_ORDERS)
"""So many of `FIGURES`, the first ones, are means over questions; the others are BLEU of `BLEU_ORDERS`."""

STATISTICS = MEANS + 2 * MAX_ORDER + 2
"""Numbers a question: the `MEANS`; n-grams that match, n-grams, of order 1 to `MAX_ORDER`; both lengths."""


def overlap(predicted: Sequence[str], gold: Sequence[str]) -> tuple[float, float, float]:
    """F1, precision and recall of two bags of tokens, 0 to 1; a token counts as often as both sides have it.

    SQuAD's F1. Two empty texts agree.
    """
    f1, precision, recall = _overlaps(ngram_counts([predicted], [gold]))[0]
    return float(f1), float(precision), float(recall)


def _overlaps(counts: Array) -> Array:
    """(n, 3) F1, precision and recall of questions from their `ngram_counts`."""
    shared, own, other = counts[:, 0], counts[:, -2], counts[:, -1]
    precision, recall = shared / np.maximum(own, 1), shared / np.maximum(other, 1)
    f1 = 2 * precision * recall / np.where(shared, precision + recall, 1)
    agree = (own == 0) & (other == 0)
    return np.where(agree[:, None], 1.0, np.column_stack([f1, precision, recall]))


def ngram_counts(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> Array:
    """What BLEU is made of, of many questions at once, since counting each by itself takes four times as long.

    Args:
        predicted: the answers' tokens, n lists.
        gold: the truths' tokens, n lists.

    Returns:
        (n, 2 * MAX_ORDER + 2): matching n-grams (clipped) of order 1 to 4, n-grams of order 1 to 4, both lengths.
    """
    texts = [*predicted, *gold]
    count = len(predicted)
    known: dict[str, int] = {}
    tokens = np.array([known.setdefault(token, len(known)) for text in texts for token in text], dtype=np.int64)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    text_of = np.repeat(np.arange(len(texts)), lengths)
    grams, matching = tokens, []
    for order in range(1, MAX_ORDER + 1):
        if order > 1:  # each n-gram that begins here grows by the token that follows; at a text's end there is none
            whole = text_of[: len(text_of) - order + 1] == text_of[order - 1 :]
            longer = grams[: len(whole)] * (len(known) or 1) + tokens[order - 1 :]
            grams = np.unique(longer, return_inverse=True)[1]  # numbered anew, so that no number ever overflows
        else:
            whole = np.ones(len(tokens), dtype=bool)
        matching.append(_matching(grams[whole], text_of[: len(whole)][whole], count))
    own, other = lengths[:count], lengths[count:]
    totals = [np.maximum(own - order, 0) for order in range(MAX_ORDER)]
    return np.column_stack([*matching, *totals, own, other]).astype(np.float64)


def _matching(grams: Ints, text_of: Ints, count: int) -> Ints:
    """(count,) sizes of the intersections of bags: n-grams of text i and of text ``count + i``."""
    size = int(grams.max(initial=0)) + 1
    keys = text_of % max(count, 1) * size + grams
    (own, often), (other, as_often) = (
        np.unique(keys[side], return_counts=True) for side in (text_of < count, text_of >= count)
    )
    both, here, there = np.intersect1d(own, other, assume_unique=True, return_indices=True)
    return np.bincount(both // size, np.minimum(often[here], as_often[there]), minlength=count)


def statistics(same: Sequence[bool], predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> Array:
    """A row of `STATISTICS` numbers for each of n questions.

    Args:
        same: whether the normalised texts are equal (exact match does not depend on a tokenizer).
        predicted: tokens of the normalised answers.
        gold: tokens of the normalised truths.
    """
    counts = ngram_counts(predicted, gold)
    return np.column_stack([np.array(same, dtype=np.float64), _overlaps(counts), counts])


def figures(sums: Array, count: Array) -> Array:
    """Figures of R samples of questions; the BLEU of a single sample is computed by sacrebleu itself.

    Args:
        sums: (R, STATISTICS), the questions' rows added up.
        count: (R, 1) questions in each sample, at least 1.

    Returns:
        (R, len(FIGURES)) in their order, 0 to 100.
    """
    counts = sums[:, MEANS:]
    if len(counts) == 1:
        bleu = [np.array([reported_bleu(counts[0], order)]) for order in BLEU_ORDERS]
    else:
        bleu = [corpus_bleu(counts, order) for order in BLEU_ORDERS]
    return np.column_stack([100 * sums[:, :MEANS] / count, *bleu])


def corpus_bleu(counts: Array, order: int) -> Array:
    """``sacrebleu.metrics.BLEU.compute_bleu`` (``exp`` smoothing, effective order) for many samples at once.

    Args:
        counts: (R, 2 * MAX_ORDER + 2), sums of `ngram_counts`.
        order: highest n-gram order, 1 to 4.

    Returns:
        (R,), 0 to 100.
    """
    correct, total = counts[:, :order], counts[:, MAX_ORDER : MAX_ORDER + order]
    own, other = counts[:, -2], counts[:, -1]
    used = total > 0
    missed = used & (correct == 0)
    halved = 2.0 ** np.cumsum(missed, axis=1)  # each order without a match counts half as much as the one before
    precision = np.where(missed, 1.0 / halved, correct) / np.where(used, total, 1)
    logs = np.where(used, np.log(np.where(used, precision, 1)), 0).sum(axis=1) / np.maximum(used.sum(axis=1), 1)
    penalty = np.where(own < other, np.exp(1 - other / np.maximum(own, 1)), 1.0)
    return np.where(correct.any(axis=1), 100 * penalty * np.exp(logs), 0.0)


def reported_bleu(counts: Array, order: int) -> float:
    """Corpus BLEU by sacrebleu itself, from summed `ngram_counts`; 0 to 100.

    Raises:
        ValueError: sacrebleu is not installed.
    """
    whole = [round(count) for count in counts]
    result: Any = _sacrebleu().compute_bleu(
        whole[:order],
        whole[MAX_ORDER : MAX_ORDER + order],
        whole[-2],
        whole[-1],
        smooth_method=SMOOTHING,
        effective_order=True,
        max_ngram_order=order,
    )
    return float(result.score)


def signature() -> str:
    """How ``strict`` BLEU is computed, for the scores file.

    Raises:
        ValueError: sacrebleu is not installed.
    """
    _sacrebleu()
    import sacrebleu

    return f"sacrebleu {sacrebleu.__version__} corpus BLEU, cumulative, smooth {SMOOTHING}, effective order"


def _sacrebleu() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise ValueError(
            "sacrebleu is not installed, which scoring needs. Install it: pip install 'llava_ultra_ext[eval]'"
        ) from None
    return BLEU
