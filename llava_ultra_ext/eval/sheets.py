"""Questions as rows of numbers: everything that is read from texts, once, so that resampling is matrix products only.

A `Sheet` holds one model's rows of one column family under one tokenizer, and knows how summed rows become figures.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from llava_ultra_ext.eval import llava_med, metrics
from llava_ultra_ext.eval.closed import lmms_eval_same, same_answer
from llava_ultra_ext.eval.gold import Gold
from llava_ultra_ext.eval.metrics import FIGURES, Array
from llava_ultra_ext.eval.normalize import normalise
from llava_ultra_ext.eval.predictions import Answers
from llava_ultra_ext.eval.tokenizers import Tokenize, tokenizer

PROCESSES_FROM = 2000
"""From this many open questions on, tokenizers work in processes of their own, with a progress bar."""

BATCH = 500
"""Questions that are cut and counted at once."""

OPEN, CLOSED, ALL = "open", "closed", "all"


@dataclass(frozen=True)
class Sheet:
    """One model's numbers.

    Args:
        path: where the figures stand in the scores file, under a model: ``("metrics", "strict", "char")``, or
            ``("closed_accuracy",)`` for a sheet with one figure.
        names: of the figures; one empty name for a sheet with one figure.
        covers: which questions have rows: `OPEN`, `CLOSED` or `ALL`.
        rows: (n, S).
        figures: summed rows (R, S) and numbers of questions (R, 1) -> (R, len(names)), 0 to 100.
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    covers: str
    rows: Array
    figures: Callable[[Array, Array], Array]


def make_sheets(golds: Sequence[Gold], models: Sequence[Answers], tokenizers: Sequence[str]) -> list[list[Sheet]]:
    """The sheets of each model, all with one row for each question of their kind, in the order of `golds`.

    Args:
        golds: the questions that are scored; each model has an answer to each.
        models: M models.
        tokenizers: names.

    Raises:
        ValueError: an unknown tokenizer, or a library is missing.
    """
    asked = of_kind(golds, OPEN)
    truths = [gold.answer for gold in asked]
    answers = [[model.texts[gold.id] for gold in asked] for model in models]
    sheets: list[list[Sheet]] = [[] for _ in models]
    for name, (strict, med) in zip(tokenizers, _rows_of_all(tokenizers, answers, truths), strict=True):
        _add(sheets, ("metrics", "strict", name), strict, metrics.figures)
        _add(sheets, ("metrics", "llava_med", name), med, _means)
    for model, own in zip(models, sheets, strict=True):
        own += [_accuracy(golds, model, path, covers, same) for path, covers, same in _ACCURACIES]
    return sheets


_ACCURACIES: tuple[tuple[str, str, Callable[[str, str], bool]], ...] = (
    ("closed_accuracy", CLOSED, same_answer),
    ("lmms_eval_accuracy", ALL, lmms_eval_same),
    ("llava_med_open_accuracy", OPEN, llava_med.open_hit),
    ("llava_med_closed_accuracy", CLOSED, llava_med.open_hit),
    ("llava_med_yes_no_accuracy", CLOSED, llava_med.yes_no_hit),
)


def of_kind(golds: Sequence[Gold], kind: str) -> list[Gold]:
    """The questions that a sheet of this kind covers."""
    return [gold for gold in golds if kind == ALL or gold.closed == (kind == CLOSED)]


def _add(
    sheets: Sequence[list[Sheet]],
    path: tuple[str, ...],
    rows: Sequence[Array],
    figures: Callable[[Array, Array], Array],
) -> None:
    for own, of_model in zip(sheets, rows, strict=True):
        own.append(Sheet(path, FIGURES, OPEN, of_model, figures))


def _rows_of_all(
    tokenizers: Sequence[str], answers: Sequence[Sequence[str]], truths: Sequence[str]
) -> list[tuple[list[Array], list[Array]]]:
    """Both families' rows under each tokenizer, for each model; of many questions side by side, since cutting texts is
    nearly all of the time."""
    texts = {
        family: ([[prepare(text) for text in given] for given in answers], [prepare(text) for text in truths])
        for family, prepare in ((_strict, normalise), (_llava_med, str.lower))
    }
    if len(truths) < PROCESSES_FROM:
        return [
            (_rows(_strict, name, *texts[_strict]), _rows(_llava_med, name, *texts[_llava_med])) for name in tokenizers
        ]
    slowest_first = sorted(tokenizers, key=lambda name: not name.startswith("jieba"))
    # Ctrl-C reaches them too: they end without a word, the command says what there is to say.
    with ProcessPoolExecutor(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)) as pool:
        waiting = {
            (name, family): pool.submit(_rows, family, name, *texts[family])
            for name in slowest_first
            for family in texts
        }
        for _ in tqdm(as_completed(waiting.values()), total=len(waiting), desc="columns", unit="column"):
            pass
        return [(waiting[name, _strict].result(), waiting[name, _llava_med].result()) for name in tokenizers]


_Family = Callable[[Tokenize, Sequence[str], Sequence[str], Sequence[Sequence[str]]], Array]


def _rows(family: _Family, name: str, answers: Sequence[Sequence[str]], truths: Sequence[str]) -> list[Array]:
    """A family's rows, for each model, under a tokenizer that is named: itself it does not go to another process.

    Some questions at a time: the tokens of all of them take gigabytes.
    """
    cut = tokenizer(name)
    rows: list[list[Array]] = [[] for _ in answers]
    for start in range(0, max(1, len(truths)), BATCH):
        batch = slice(start, start + BATCH)
        tokens = [cut(text) for text in truths[batch]]  # once for all models
        for own, given in zip(rows, answers, strict=True):
            own.append(family(cut, given[batch], truths[batch], tokens))
    return [np.concatenate(own) for own in rows]


def _strict(cut: Tokenize, answers: Sequence[str], truths: Sequence[str], tokens: Sequence[Sequence[str]]) -> Array:
    """(n, metrics.STATISTICS), of normalised texts."""
    same = [text == truth for text, truth in zip(answers, truths, strict=True)]
    return metrics.statistics(same, [cut(text) for text in answers], tokens)


def _llava_med(cut: Tokenize, answers: Sequence[str], truths: Sequence[str], tokens: Sequence[Sequence[str]]) -> Array:
    """(n, len(FIGURES)), of texts in lower case."""
    return llava_med.statistics([cut(text) for text in answers], tokens)


def _accuracy(golds: Sequence[Gold], model: Answers, path: str, covers: str, same: Callable[[str, str], bool]) -> Sheet:
    hits = [same(model.texts[gold.id], gold.answer) for gold in of_kind(golds, covers)]
    return Sheet((path,), ("",), covers, np.array(hits, dtype=np.float64).reshape(-1, 1), _means)


def _means(sums: Array, count: Array) -> Array:
    means: Array = 100 * sums / count
    return means
