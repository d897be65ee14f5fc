"""The ``strict`` family: figures that are what their names say. Pure functions of token lists and arrays.

em, f1, precision and recall are means over questions; BLEU is sacrebleu's corpus BLEU, cumulative up to its order.
Our choice: corpus BLEU, since the sentence BLEU of an answer of two characters is made of smoothing. Smoothing is
sacrebleu's ``exp`` and the order is the effective one, without which a perfect answer of three tokens scores 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

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
    if not predicted or not gold:
        same = float(not predicted and not gold)
        return same, same, same
    shared = _shared(Counter(predicted), Counter(gold))
    precision, recall = shared / len(predicted), shared / len(gold)
    return (2 * precision * recall / (precision + recall) if shared else 0.0), precision, recall


def ngram_counts(predicted: Sequence[str], gold: Sequence[str]) -> list[int]:
    """What BLEU is made of: matching n-grams (clipped) of order 1 to 4, n-grams of order 1 to 4, both lengths."""
    correct = [_shared(Counter(predicted), Counter(gold))]
    for order in range(2, MAX_ORDER + 1):
        if correct[-1]:  # where no shorter n-gram matches, no longer one does
            own = Counter(zip(*(predicted[start:] for start in range(order)), strict=False))
            other = Counter(zip(*(gold[start:] for start in range(order)), strict=False))
            correct.append(_shared(own, other))
        else:
            correct.append(0)
    total = [max(0, len(predicted) - order + 1) for order in range(1, MAX_ORDER + 1)]
    return [*correct, *total, len(predicted), len(gold)]


def _shared(own: Mapping[Any, int], other: Mapping[Any, int]) -> int:
    """Size of the intersection of two bags; `Counter.__and__` would build it, at twice the time."""
    return sum(min(own[item], other[item]) for item in own.keys() & other.keys())


def statistics(same: bool, predicted: Sequence[str], gold: Sequence[str]) -> list[float]:
    """One question's row of `STATISTICS` numbers.

    Args:
        same: whether the normalised texts are equal (exact match does not depend on a tokenizer).
        predicted: tokens of the normalised answer.
        gold: tokens of the normalised truth.
    """
    return [float(same), *overlap(predicted, gold), *ngram_counts(predicted, gold)]


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
