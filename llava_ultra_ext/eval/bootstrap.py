"""How much a figure depends on what was asked: the percentile bootstrap over exams.

Our choice: whole exams are drawn, with all their questions, since the answers about one exam stand and fall together
and intervals over single questions would be too narrow; a question without ``exam_id`` is drawn alone.

Two models answer the same questions, so they are compared on the same resamples (the paired bootstrap of Koehn 2004,
"Statistical Significance Tests for Machine Translation Evaluation"): their difference varies less than either figure.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llava_ultra_ext.eval.metrics import Array
from llava_ultra_ext.eval.sheets import Sheet

Rows = npt.NDArray[np.intp]

LEVEL = 95
"""Percent of an interval."""

_AT_ONCE = 4_000_000
"""Draws held at once; bounds the memory whatever the number of questions."""


def resampled(
    sheets: Sequence[Sheet], rows: Rows, resamples: int, seed: int, exams: Sequence[Hashable] | None = None
) -> list[Array]:
    """Figures of every sheet on the same resamples of some questions.

    Args:
        sheets: of any models; all have the same questions in the same order.
        rows: (n,) the questions to draw from, n at least 1.
        resamples: R.
        seed: of the draws; they depend on it and on the number of exams alone, so every model meets the same ones.
        exams: (n,) which exam each of `rows` is about; None: each is an exam of its own.

    Returns:
        (R, figures) for each sheet.
    """
    ones = np.ones((len(rows), 1))
    stacked = np.concatenate([ones, *(sheet.rows[rows] for sheet in sheets)], axis=1)
    if exams is not None:
        stacked = _summed(stacked, exams)
    sums = np.concatenate([weights @ stacked for weights in _draws(len(stacked), resamples, seed)])
    edges = np.cumsum([1, *(sheet.rows.shape[1] for sheet in sheets)])[:-1]
    counts, *parts = np.split(sums, edges, axis=1)
    return [sheet.figures(part, counts) for sheet, part in zip(sheets, parts, strict=True)]


def _summed(stacked: Array, exams: Sequence[Hashable]) -> Array:
    """The rows of each exam added up; exams in the order of their first question."""
    places: dict[Hashable, int] = {}
    at = [places.setdefault(exam, len(places)) for exam in exams]
    summed = np.zeros((len(places), stacked.shape[1]))
    np.add.at(summed, at, stacked)
    return summed


def _draws(count: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each exam is drawn, (r, count) at a time."""
    generator = np.random.default_rng((seed, count))
    step = max(1, min(resamples, _AT_ONCE // count))
    for start in range(0, resamples, step):
        draws = generator.integers(count, size=(min(step, resamples - start), count))
        yield np.stack([np.bincount(drawn, minlength=count) for drawn in draws]).astype(np.float64)


def interval(figures: Array) -> tuple[Array, Array]:
    """Lower and upper end of the `LEVEL` percent interval of (R, figures)."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(figures, [tail, 100 - tail], axis=0)
    return low, high


def p_value(differences: Array) -> Array:
    """Two-sided p of (R, figures) differences: how often a resample turns the difference round.

    Counted with one resample added on each side, so that no p is 0 for want of resamples.
    """
    count = len(differences)
    below = (np.sum(differences <= 0, axis=0) + 1) / (count + 1)
    above = (np.sum(differences >= 0, axis=0) + 1) / (count + 1)
    return np.minimum(1.0, 2 * np.minimum(below, above))
