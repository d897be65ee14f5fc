"""The scores file: every figure of every model, with its interval, its subsets, and what it was computed by.

::

    {"format": "ultra_scores/1",
     "gold": {"file", "fingerprint", "questions", "open", "closed", "lang": {"zh": n}},
     "settings": {"tokenizers", "shown": {"zh": "char", "en": "13a"}, "normalisation", "bleu": {family: rule},
                  "bootstrap": {"resamples", "seed", "percent", "unit"}},
     "models": [{"name", "file", "answers_fingerprint", "faults": {kind: n}, "n", "n_open", "n_closed",
                 "metrics": {family: {tokenizer: {"em", "f1", "precision", "recall", "bleu_1", "bleu_2", "bleu_3",
                                                  "bleu"}}},
                 "closed_accuracy", "lmms_eval_accuracy", "llava_med_open_accuracy", "llava_med_closed_accuracy",
                 "llava_med_yes_no_accuracy",
                 "intervals": the same keys from "metrics" on, each figure [low, high],
                 "subsets": {"modality": {"CT": {"n", …, "metrics", "closed_accuracy", …, "intervals"}}}}],
     "comparisons": [{"a", "b", the same keys from "metrics" on, each figure {"difference", "low", "high", "p"}}]}

Figures are 0 to 100, null where no question is of their kind; a difference is b's figure minus a's. Families are
`strict` (`metrics`) and `llava_med`; text metrics cover the open questions, closed accuracies the closed ones,
lmms-eval's rule all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llava_ultra_ext.eval import bootstrap, llava_med, metrics, normalize
from llava_ultra_ext.eval.bootstrap import Rows
from llava_ultra_ext.eval.gold import TAGS, Gold, fingerprint
from llava_ultra_ext.eval.metrics import Array
from llava_ultra_ext.eval.predictions import Answers, answers_fingerprint
from llava_ultra_ext.eval.sheets import ALL, CLOSED, OPEN, Sheet, make_sheets, of_kind
from llava_ultra_ext.eval.tokenizers import OF_LANGUAGE

FORMAT = "ultra_scores/1"


def score(
    gold_file: str | Path,
    golds: Sequence[Gold],
    models: Sequence[Answers],
    *,
    tokenizers: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every figure of the scores file (module docstring).

    Args:
        gold_file: for its name.
        golds: the questions that are scored; each model has an answer for each.
        models: one or more.
        tokenizers: names of `tokenizers.NAMES`.
        resamples: of the bootstrap; 0 leaves the intervals and comparisons out.
        seed: of the bootstrap.

    Raises:
        ValueError: an unknown tokenizer, or a library is missing.
    """
    sheets = make_sheets(golds, models, tokenizers)
    entries: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    for tag, value, subset in _subsets(golds):
        measured = _measure(sheets, subset, resamples, seed)
        blocks = [_block(of_model, subset) for of_model in measured]
        if tag is None:
            about = [_about_model(model, golds) for model in models]
            entries = [{**first, **block, "subsets": {}} for first, block in zip(about, blocks, strict=True)]
            if resamples:
                named = list(zip([model.name for model in models], measured, strict=True))
                comparisons = [_comparison(*a, *b) for a, b in combinations(named, 2)]
        else:
            for entry, block in zip(entries, blocks, strict=True):
                entry["subsets"].setdefault(tag, {})[value] = block
    return {
        "format": FORMAT,
        "gold": _about_gold(gold_file, golds),
        "settings": _settings(tokenizers, resamples, seed),
        "models": entries,
        "comparisons": comparisons,
    }


class _Questions(NamedTuple):
    """Of one kind: their rows in the sheets of that kind, and the exam that each is about."""

    rows: Rows
    exams: list[str]


_Subset = Mapping[str, _Questions]
"""Kind of question -> the subset's questions of that kind."""


class _Measured(NamedTuple):
    """One sheet on one subset; `draws` (R, figures), None where there is nothing to draw from."""

    sheet: Sheet
    points: list[float | None]
    draws: Array | None


def _subsets(golds: Sequence[Gold]) -> Iterator[tuple[str | None, str, _Subset]]:
    """All questions first, then each tag, each of its values, and the questions that have it."""
    yield None, "", _subset(golds, {gold.id for gold in golds})
    for tag in TAGS:
        values: dict[str, set[str]] = {}
        for gold in golds:
            if tag in gold.tags:
                values.setdefault(gold.tags[tag], set()).add(gold.id)
        for value in sorted(values):
            yield tag, value, _subset(golds, values[value])


def _subset(golds: Sequence[Gold], members: set[str]) -> _Subset:
    subset = {}
    for kind in (OPEN, CLOSED, ALL):
        found = [(row, gold) for row, gold in enumerate(of_kind(golds, kind)) if gold.id in members]
        # A question without exam is drawn alone: no exam id holds a line end.
        exams = [gold.exam_id or f"question\n{gold.id}" for _, gold in found]
        subset[kind] = _Questions(np.array([row for row, _ in found], dtype=np.intp), exams)
    return subset


def _measure(sheets: Sequence[Sequence[Sheet]], subset: _Subset, resamples: int, seed: int) -> list[list[_Measured]]:
    """Every sheet of every model on a subset, all models on the same resamples."""
    measured: list[list[_Measured]] = [[] for _ in sheets]
    for kind, (rows, exams) in subset.items():
        owned = [(model, sheet) for model, own in enumerate(sheets) for sheet in own if sheet.covers == kind]
        draws: Sequence[Array | None] = [None] * len(owned)
        if resamples and len(rows):
            draws = bootstrap.resampled([sheet for _, sheet in owned], rows, resamples, seed, exams)
        for (model, sheet), drawn in zip(owned, draws, strict=True):
            measured[model].append(_Measured(sheet, _points(sheet, rows), drawn))
    return measured


def _points(sheet: Sheet, rows: Rows) -> list[float | None]:
    if not len(rows):
        return [None] * len(sheet.names)
    summed = sheet.rows[rows].sum(axis=0, keepdims=True)
    return [float(value) for value in sheet.figures(summed, np.array([[float(len(rows))]]))[0]]


def _block(measured: Sequence[_Measured], subset: _Subset) -> dict[str, Any]:
    """One model's part of the file for one subset."""
    block: dict[str, Any] = {"n": len(subset[ALL].rows)}
    block |= {"n_open": len(subset[OPEN].rows), "n_closed": len(subset[CLOSED].rows)}
    intervals: dict[str, Any] = {}
    for sheet, points, draws in measured:
        _put(block, sheet, points)
        if draws is not None:
            _put(intervals, sheet, np.column_stack(bootstrap.interval(draws)).tolist())
    return {**block, "intervals": intervals}


def _comparison(name_a: str, a: Sequence[_Measured], name_b: str, b: Sequence[_Measured]) -> dict[str, Any]:
    """How much more b has than a."""
    entry: dict[str, Any] = {"a": name_a, "b": name_b}
    for own, other in zip(a, b, strict=True):
        if own.draws is None or other.draws is None:
            continue
        varied = other.draws - own.draws
        means = [(after or 0.0) - (before or 0.0) for before, after in zip(own.points, other.points, strict=True)]
        columns = zip(means, *bootstrap.interval(varied), bootstrap.p_value(varied), strict=True)
        keys = ("difference", "low", "high", "p")
        _put(entry, own.sheet, [dict(zip(keys, column, strict=True)) for column in columns])
    return entry


def _put(block: dict[str, Any], sheet: Sheet, values: Sequence[Any]) -> None:
    """Values of a sheet's figures at its path."""
    *folders, last = sheet.path
    for folder in folders:
        block = block.setdefault(folder, {})
    named = dict(zip(sheet.names, map(_rounded, values), strict=True))
    block[last] = named[""] if sheet.names == ("",) else named


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return None if value is None else round(float(value), 6)


def _about_model(model: Answers, golds: Sequence[Gold]) -> dict[str, Any]:
    return {
        "name": model.name,
        "file": model.file,
        "answers_fingerprint": answers_fingerprint(model, golds),
        "faults": dict(model.faults),
    }


def _about_gold(file: str | Path, golds: Sequence[Gold]) -> dict[str, Any]:
    langs = [gold.lang for gold in golds]
    return {
        "file": Path(file).name,
        "fingerprint": fingerprint(golds),
        "questions": len(golds),
        "open": len(of_kind(golds, OPEN)),
        "closed": len(of_kind(golds, CLOSED)),
        "lang": {lang: langs.count(lang) for lang in sorted(set(langs))},
    }


def _settings(tokenizers: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    shown = {lang: name if name in tokenizers else tokenizers[0] for lang, name in OF_LANGUAGE.items()}
    return {
        "tokenizers": list(tokenizers),
        "shown": shown,
        "normalisation": normalize.RULE,
        "bleu": {"strict": metrics.signature(), "llava_med": llava_med.BLEU_RULE},
        "bootstrap": {"resamples": resamples, "seed": seed, "percent": bootstrap.LEVEL, "unit": "exam"},
    }
