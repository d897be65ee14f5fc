"""Scores for a terminal: what `llava-ultra score` prints. A Chinese character is two columns wide there."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llava_ultra_ext.eval.table_rows import (
    FAMILIES,
    FAULTY,
    NULL,
    OPEN_COLUMNS,
    Family,
    Part,
    Scores,
    columns,
    faults,
    figure,
    parts,
    rules,
    shown,
    signed,
    sources,
    values,
)

_SHORT = {"precision": "P", "recall": "R"}
_CLOSED = {"closed_accuracy": "closed", "llava_med_closed_accuracy": "closed", "llava_med_yes_no_accuracy": "yes/no"}
_EXTRA = {
    "strict": {"lmms_eval_accuracy": "lmms-eval"},
    "llava_med": {"llava_med_open_accuracy": "open acc"},
}
"""Columns that the terminal has beside those of the paper's tables."""

_INTERVALS = {"strict": ("f1", "bleu", "closed_accuracy"), "llava_med": ("f1", "bleu", "llava_med_closed_accuracy")}
_SUBSETS = {"modality": "by modality", "content_type": "by content type"}
_GAP = "  "
_WIDTH = 7
_LINE = 110
"""Columns of running text."""


def text(scores: Scores) -> str:
    """Every model's figures with intervals, subsets, paired comparisons, and what they were computed by.

    Args:
        scores: a scores file's content.
    """
    marked = {model["name"] for model in scores["models"] if any(model["faults"].values())}
    lines: list[str] = []
    own = parts("", scores)
    for part in own:
        for family in FAMILIES:
            lines += [*_block(part, family, scores, marked), ""]
        if part.whole:
            for tag, label in _SUBSETS.items():
                lines += _subset_rows(part, tag, label)
    lines += _comparisons(scores, own[-1])
    lines += _legend(scores)
    return "\n".join(lines)


def _block(part: Part, family: Family, scores: Scores, marked: set[str]) -> Iterator[str]:
    """One family's figures: a row a model, its intervals below it."""
    names = {name: f"{name} (!)" if name in marked else name for name in part.blocks}
    edge = max(map(_text_width, [*names.values(), " " * 24]))
    keys = {**columns(family), **_EXTRA[family.key]}
    widths = [max(_WIDTH, len(_head(key, label)) + 1) for key, label in keys.items()]
    title = f"{part.title}, " if part.title else ""
    yield f"{family.title} ({title}tokenizer {part.tokenizer}, {part.counts})"
    yield _pad("", edge) + _line([_head(*item) for item in keys.items()], widths, len(columns(family)))
    for name, block in part.blocks.items():
        cells = [shown(figure(block, family.key, part.tokenizer, key)) for key in keys]
        yield _pad(names[name], edge) + _line(cells, widths, len(columns(family)))
        intervals = _intervals(block, part, family)
        if intervals:
            yield f"{_GAP}{scores['settings']['bootstrap']['percent']} %: {intervals}"


def _head(key: str, label: str) -> str:
    return _SHORT.get(key) or _CLOSED.get(key) or label


def _line(cells: Sequence[str], widths: Sequence[int], own: int) -> str:
    """Right-aligned cells: open figures | closed ones | what is beside the paper's columns."""
    padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    opened = len(OPEN_COLUMNS)
    return " |".join(["".join(padded[:opened]), "".join(padded[opened:own]), "".join(padded[own:])])


def _intervals(block: Mapping[str, Any], part: Part, family: Family) -> str:
    found = []
    for key in _INTERVALS[family.key]:
        bounds = figure(block.get("intervals", {}), family.key, part.tokenizer, key)
        if bounds:
            found.append(f"{_head(key, columns(family)[key])} [{shown(bounds[0])}, {shown(bounds[1])}]")
    return _GAP.join(found)


def _subset_rows(part: Part, tag: str, label: str) -> list[str]:
    """One row a value, one column a model: F1 of its open questions / accuracy of its closed ones."""
    first = next(iter(part.blocks.values()))
    found = values(part, tag)
    if not found:
        return []
    edge = max(map(_text_width, [*found, " " * 16]))
    widths = [max(_text_width(name), 13) + 2 for name in part.blocks]
    heads = "".join(_pad(name, width, right=True) for name, width in zip(part.blocks, widths, strict=True))
    lines = [
        f"{label}: F1 of open questions / accuracy of closed ones (strict, tokenizer {part.tokenizer})",
        f"{_pad('', edge)}  open closed{heads}",
    ]
    for value in found:
        block, cells = first["subsets"][tag][value], ""
        for model, width in zip(part.blocks.values(), widths, strict=True):
            own = model["subsets"][tag][value]
            f1 = shown(figure(own, "strict", part.tokenizer, "f1"))
            cells += f"{f1} / {shown(own['closed_accuracy']):>5}".rjust(width)
        lines.append(f"{_pad(value, edge)}{block['n_open']:6}{block['n_closed']:7}{cells}")
    return [*lines, ""]


def _comparisons(scores: Scores, part: Part) -> list[str]:
    """Each pair of models on the same resamples."""
    if not scores["comparisons"]:
        return []
    about = scores["settings"]["bootstrap"]
    lines = _wrapped(
        f"paired bootstrap over exams ({about['resamples']} resamples, seed {about['seed']}; strict, tokenizer "
        f"{part.tokenizer}; p is two-sided, not corrected for the number of comparisons)"
    )
    for pair in scores["comparisons"]:
        cells = []
        for key in _INTERVALS["strict"]:
            found = figure(pair, "strict", part.tokenizer, key)
            if found:
                bounds = f"[{signed(found['low'])}, {signed(found['high'])}]"
                label = _head(key, columns(FAMILIES[0])[key])
                cells.append(f"{label} {signed(found['difference'])} {bounds} {_p(found['p'])}")
        lines += [f"{pair['b']} minus {pair['a']}", f"{_GAP}{(_GAP + _GAP).join(cells) or NULL}"]
    return [*lines, ""]


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def _legend(scores: Scores) -> list[str]:
    """What the figures are, and what was wrong with the answers, last, where a reader's eye is."""
    alone = [("", scores)]
    lines = [f"{family.title}: {'. '.join(rules(alone, family))}." for family in FAMILIES]
    lines += ["lmms-eval: that tool's exact match for SLAKE, over open and closed questions."]
    lines += [f"scored: {line}." for line in sources(alone)]
    lines = [part for line in lines for part in _wrapped(line)]
    found = faults(alone)
    if found:
        lines += ["", f"!! {FAULTY} (!):", *(f"!!   {line}" for line in found)]
    return lines


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, _LINE, subsequent_indent=_GAP)


def _text_width(text: str) -> int:
    """Columns of a terminal; marks that combine take none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _pad(text: str, width: int, right: bool = False) -> str:
    fill = " " * max(0, width - _text_width(text))
    return fill + text if right else text + fill
