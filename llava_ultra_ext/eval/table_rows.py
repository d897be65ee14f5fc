"""What stands in a table of scores, before it is written as text, Markdown or LaTeX.

A scores file (schema: `scores`) falls into parts: one a language, each under the tokenizer that is shown for it, and
all languages together where questions carry a modality. Our choice: figures of Chinese and English questions stand
apart, since a token is a character in one and a word in the other; the rows of a modality cover what the gold file
holds, so a gold file of one language (``--lang``) gives them for that language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llava_ultra_ext.eval.metrics import FIGURES
from llava_ultra_ext.eval.predictions import FAULTS

Scores = Mapping[str, Any]
Datasets = Sequence[tuple[str, Scores]]
"""Titles and their scores."""

NULL = "–"
"""Shown where no question is of the kind."""

_HEADINGS = {
    "em": "EM",
    "f1": "F1",
    "precision": "Precision",
    "recall": "Recall",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu": "BLEU",
}
OPEN_COLUMNS = {key: _HEADINGS[key] for key in FIGURES}
"""Key -> heading of the open-set columns that both families have."""


class Family(NamedTuple):
    """A column family: what it is called, what a reader must know of it, and its closed-set columns."""

    key: str
    title: str
    note: str
    closed: Mapping[str, str]


FAMILIES = (
    Family(
        "strict",
        "strict",
        "Open answers: exact match, precision, recall and F1 over tokens counted as often as both sides have them, "
        "means over questions. BLEU is the uniform one up to 4-grams. Closed answers: equal after normalisation, or "
        "in the same set of synonyms",
        {"closed_accuracy": "Acc"},
    ),
    Family(
        "llava_med",
        "llava-med",
        "What LLaVA-Med v1.0's functions compute, for comparison with published tables only: EM is a precision over "
        "distinct words, precision and recall count a word as often as the answer repeats it. Acc: the truth is a part "
        "of the answer (run_eval_batch.py); Acc y/n: and the answer holds yes or no (run_eval.py)",
        {"llava_med_closed_accuracy": "Acc", "llava_med_yes_no_accuracy": "Acc y/n"},
    ),
)


@dataclass(frozen=True)
class Part:
    """Questions whose figures are shown together.

    Args:
        title: the data set's, with the language where there are several.
        tokenizer: of the text figures.
        blocks: model name -> its figures over these questions, as in the scores file.
        whole: whether these are all questions of the scores file, so that its subsets and comparisons belong here.
    """

    title: str
    tokenizer: str
    blocks: Mapping[str, Mapping[str, Any]]
    whole: bool

    @property
    def counts(self) -> str:
        """How many questions; all models of a scores file have the same."""
        block = next(iter(self.blocks.values()))
        return f"n = {block['n']} ({block['n_open']} open, {block['n_closed']} closed)"


class Cell(NamedTuple):
    """A figure, 0 to 100 or None; whether it is the best of its group; its difference to the first row, if wanted."""

    value: float | None
    best: bool = False
    difference: float | None = None


class Row(NamedTuple):
    """A model's row; `value` is empty, or the modality that the row is about."""

    model: str
    value: str
    cells: tuple[Cell, ...]


class Group(NamedTuple):
    """The rows of one part."""

    part: Part
    rows: tuple[Row, ...]


def parts(title: str, scores: Scores) -> list[Part]:
    """Languages apart, then all together; one part where there is one language."""
    shown, langs = scores["settings"]["shown"], list(scores["gold"]["lang"])
    models = scores["models"]
    # The tokenizer of Chinese cuts English into words too; the other way round it leaves Chinese in one piece.
    tokenizer = shown["zh"] if "zh" in langs else shown[langs[0]]
    whole = {model["name"]: model for model in models}
    if len(langs) == 1:
        return [Part(title, tokenizer, whole, True)]
    apart = [
        Part(_joined(title, lang), shown[lang], {m["name"]: m["subsets"]["lang"][lang] for m in models}, False)
        for lang in sorted(langs, reverse=True)
    ]
    return [*apart, Part(_joined(title, " and ".join(sorted(langs, reverse=True))), tokenizer, whole, True)]


def _joined(title: str, lang: str) -> str:
    return f"{title}, {lang}" if title else lang


def columns(family: Family) -> dict[str, str]:
    """Keys and headings of a family's columns, open-set ones first."""
    return {**OPEN_COLUMNS, **family.closed}


def figure(block: Mapping[str, Any], family: str, tokenizer: str, key: str) -> Any:
    """A figure, interval or difference of a block of the scores file; None where there is none."""
    if key in OPEN_COLUMNS:
        return block.get("metrics", {}).get(family, {}).get(tokenizer, {}).get(key)
    return block.get(key)


def shown(value: float | None) -> str:
    """A figure as tables show it."""
    return NULL if value is None else f"{value:.1f}"


def signed(difference: float) -> str:
    """A difference as tables show it."""
    text = f"{difference:+.1f}"
    return "±0.0" if float(text) == 0 else text


def groups(datasets: Datasets, family: Family, *, ablation: bool = False) -> list[Group]:
    """Rows of a table in the layout of the paper's Table 2, or of Table 3 (`ablation`).

    Questions of several languages together are a group only where they have a modality to be told apart by, and never
    in an ablation.
    """
    found = []
    for title, scores in datasets:
        for part in (own := parts(title, scores)):
            modalities = [] if ablation or not part.whole else values(part, "modality")
            if modalities or not part.whole or len(own) == 1:
                found.append(Group(part, tuple(_rows(part, family, modalities, ablation))))
    return found


def values(part: Part, tag: str) -> list[str]:
    """Values of a tag by which all questions fall into several kinds; none where there is but one."""
    first = next(iter(part.blocks.values()))
    found = list(first.get("subsets", {}).get(tag, {}))
    return found if len(found) > 1 else []


def _rows(part: Part, family: Family, modalities: Sequence[str], ablation: bool) -> Iterable[Row]:
    """Each model's row over all questions, then its rows of each modality."""
    levels = {
        value: _cells(
            {name: block["subsets"]["modality"][value] if value else block for name, block in part.blocks.items()},
            part.tokenizer,
            family,
            ablation,
        )
        for value in ("", *modalities)
    }
    for name in part.blocks:
        yield from (Row(name, value, cells[name]) for value, cells in levels.items())


def _cells(
    blocks: Mapping[str, Mapping[str, Any]], tokenizer: str, family: Family, ablation: bool
) -> dict[str, tuple[Cell, ...]]:
    """Cells of each model. Best are all that show the same highest figure, unless every model does."""
    table = {
        name: [figure(block, family.key, tokenizer, key) for key in columns(family)] for name, block in blocks.items()
    }
    base = next(iter(table.values()))
    tops = [
        max((float(shown(value)) for value in column if value is not None), default=None)
        for column in zip(*table.values(), strict=True)
    ]
    lows = [min(float(shown(value or 0.0)) for value in column) for column in zip(*table.values(), strict=True)]
    return {
        name: tuple(
            Cell(
                value,
                value is not None and float(shown(value)) == top != low,
                value - first if ablation and values is not base and None not in (value, first) else None,
            )
            for value, first, top, low in zip(values, base, tops, lows, strict=True)
        )
        for name, values in table.items()
    }


def rules(datasets: Datasets, family: Family) -> list[str]:
    """What the figures of a family are, for a caption: sentences without full stop."""
    settings = [scores["settings"] for _, scores in datasets]
    bleu = dict.fromkeys(own["bleu"][family.key] for own in settings)
    lines = [family.note, f"BLEU: {'; '.join(bleu)}"]
    if family.key == "strict":
        lines.append(f"Normalisation: {'; '.join(dict.fromkeys(own['normalisation'] for own in settings))}")
    lines.append("Bold: the highest figure, which is no test; intervals and comparisons stand in report.json")
    return lines


def sources(datasets: Datasets, listed: Sequence[Part] | None = None) -> list[str]:
    """What was scored, for a caption: tokenizer and n of each part, and the gold file's fingerprint."""
    lines = []
    for title, scores in datasets:
        own = [part for part in parts(title, scores) if listed is None or part in listed]
        about = "; ".join(
            f"{f'{part.title}: ' if part.title else ''}tokenizer {part.tokenizer}, {part.counts}" for part in own
        )
        lines.append(f"{about}; gold file {scores['gold']['file']}, fingerprint {scores['gold']['fingerprint']}")
    return lines


def faults(datasets: Datasets) -> list[str]:
    """What ``--allow-missing`` let pass: one line a model that has faults."""
    return [
        f"{f'{title}, ' if title else ''}{model['name']}: "
        + ", ".join(f"{count} {FAULTS.get(kind, kind)}" for kind, count in model["faults"].items())
        for title, scores in datasets
        for model in scores["models"]
        if any(model["faults"].values())
    ]


FAULTY = "SCORED WITH FAULTS (--allow-missing), over the questions that every model answered"
"""Stands before `faults`, wherever they are shown."""
