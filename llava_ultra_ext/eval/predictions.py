"""Answers files beside a gold file: who answered what, and everything that is wrong with a file before it is scored.

Read as they are: LLaVA's and LLaVA-Med's JSON lines (``question_id``, ``text``, …), and those of `llava-ultra answer`.
A file with faults is refused, since figures over the rest would not be comparable; `allow_missing` scores the rest
and keeps the counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llava_ultra_ext.data.json_lines import read_json_lines
from llava_ultra_ext.data.languages import at_home, has_english
from llava_ultra_ext.eval.gold import LISTED, Gold, question_id

FAULTS = {
    "unknown": "answers of unknown questions",
    "missing": "questions without answer",
    "doubled": "doubled answers",
    "empty": "empty answers",
    "cut": "lines that were cut off",
    "language": "answers in another language",
    "mixed_models": "further models in the file",
}
"""Kinds of faults that ``--allow-missing`` lets pass, and how tables name them."""

_FLAG = "--pred"


class Fault(NamedTuple):
    """One fault; `place` says file and line."""

    kind: str
    place: str
    message: str


@dataclass(frozen=True)
class Answers:
    """One model's answers.

    Args:
        name: of the model, for tables.
        file: file name, without folders.
        texts: question id -> answer.
        metadata: question id -> what `llava-ultra answer` says about frames; {} elsewhere.
        faults: kind of `FAULTS` -> how many.
    """

    name: str
    file: str
    texts: Mapping[str, str]
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)


def read_all(
    paths: Sequence[str | Path],
    golds: Sequence[Gold],
    *,
    names: Sequence[str] = (),
    others: frozenset[str] = frozenset(),
    allow_missing: bool = False,
) -> list[Answers]:
    """Read one answers file for each model.

    Args:
        paths: ``--pred``, one a model.
        golds: the questions that are scored.
        names: ``--name``, one a file; none, or an empty one: what the file says (``model_id``). A file with a name
            may hold answers of several model ids, as of one model that was moved.
        others: ids of questions of the gold file that are not scored (``--lang``); their answers are passed over.
        allow_missing: score although files have faults.

    Raises:
        ValueError: a file is unusable; it has faults and `allow_missing` is not set; or names do not fit.
    """
    if names and len(names) != len(paths):
        raise ValueError(f"--name: {len(names)} names for {len(paths)} answers files. Give one --name for each --pred.")
    read, faults = [], []
    for position, path in enumerate(paths):
        answers, found = _read(path, golds, names[position] if names else None, others)
        read.append(answers)
        faults.append(found)
    if any(faults) and not allow_missing:
        raise ValueError(_refusal(paths, faults))
    return _with_names(read)


def answers_fingerprint(answers: Answers, golds: Sequence[Gold]) -> str:
    """A short name for what a model answered to these questions, whatever the order of its file.

    Args:
        answers: of one model.
        golds: questions that it answered; its other answers do not count.
    """
    units = sorted(json.dumps([gold.id, answers.texts[gold.id]], ensure_ascii=False) for gold in golds)
    return hashlib.sha256("\n".join(units).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _read(
    path: str | Path, golds: Sequence[Gold], name: str | None, others: frozenset[str]
) -> tuple[Answers, list[Fault]]:
    known = {gold.id: gold for gold in golds}
    lines = read_json_lines(path, _FLAG, "answer", torn_end=True)
    texts: dict[str, str] = {}
    metadata: dict[str, Mapping[str, Any]] = {}
    models: dict[str, int] = {}
    first_line: dict[str, int] = {}
    faults = [Fault("cut", f"line {lines.torn}", "was cut off; that answer is lost")] if lines.torn else []
    for number, record in lines.rows:
        key, text = _answer(path, number, record)
        if _model(record.get("model_id")):
            models.setdefault(record["model_id"].rstrip("/"), number)
        if key in others:
            continue
        gold = known.get(key)
        fault = _fault(key, text, gold, first_line)
        if fault is not None:
            faults.append(Fault(fault[0], f"line {number}", fault[1]))
        if gold is not None and key not in texts:
            texts[key], first_line[key] = text, number
            metadata[key] = record["metadata"] if isinstance(record.get("metadata"), Mapping) else {}
    if not name:
        faults += [Fault("mixed_models", f"line {line}", text) for line, text in _further(models)]
    unanswered = [gold for gold in golds if gold.id not in texts]
    faults += [Fault("missing", f"gold line {g.line}", f"question {g.id} has no answer") for g in unanswered]
    file_name = Path(path).name
    own = name or (_model(next(iter(models))) if len(models) == 1 else "") or Path(file_name).stem
    return Answers(own, file_name, texts, metadata, dict(Counter(fault.kind for fault in faults))), faults


def _answer(path: str | Path, number: int, record: Any) -> tuple[str, str]:
    """Id and text of a line.

    Raises:
        ValueError: the line is no answer at all; nothing lets that pass.
    """
    if not isinstance(record, Mapping) or "question_id" not in record or not isinstance(record.get("text"), str):
        raise ValueError(
            f"{_FLAG} {path}: line {number} is no answer. Needed, as in LLaVA's answers files: question_id, and "
            "text as a string."
        )
    try:
        return question_id(record["question_id"]), record["text"]
    except ValueError as fault:
        raise ValueError(f"{_FLAG} {path}: line {number}: {fault}") from None


def _fault(key: str, text: str, gold: Gold | None, first_line: Mapping[str, int]) -> tuple[str, str] | None:
    if gold is None:
        return "unknown", f"question {key} is not in the gold file"
    if key in first_line:
        return "doubled", f"question {key} is answered on line {first_line[key]} already"
    if not text.strip():
        return "empty", f"the answer to question {key} is empty"
    if _in_another_language(text, gold):
        return "language", f"question {key} is {gold.lang}, its answer is in another language"
    return None


def _further(models: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """Line and text for each model but the first one of a file, given the line where each comes first."""
    first, *others = models or ("",)
    for other in others:
        yield (
            models[other],
            f"is of model {other}, line {models[first]} of {first}; --name says what they are together",
        )


def _in_another_language(text: str, gold: Gold) -> bool:
    """Abbreviations, numbers and units stand in both languages: CT, T2, 5 mm; so may the truth itself."""
    return not at_home(text, gold.lang) and not (gold.lang == "zh" and has_english(gold.answer))


def _model(given: Any) -> str:
    """The last part of a path: LLaVA-Med writes the whole path of a model folder."""
    return os.path.basename(given.rstrip("/")) if isinstance(given, str) else ""


def _refusal(paths: Sequence[str | Path], faults: Sequence[Sequence[Fault]]) -> str:
    return "\n".join(
        [
            "no scores, since they would not cover the gold file:",
            *(line for path, found in zip(paths, faults, strict=True) for line in _listing(path, found)),
            "Repair the files (an interrupted `llava-ultra answer` goes on when it is started again), or give "
            "--allow-missing: then only questions that every model answered are scored, of doubled answers the first, "
            "empty ones and those in another language as they stand, and the counts are printed with the table.",
        ]
    )


def _listing(path: str | Path, faults: Sequence[Fault]) -> Iterator[str]:
    if not faults:
        return
    kinds = Counter(fault.kind for fault in faults)
    yield f"{_FLAG} {path}: " + ", ".join(f"{kinds[kind]} {FAULTS[kind]}" for kind in FAULTS if kinds[kind])
    for kind in FAULTS:
        own = [fault for fault in faults if fault.kind == kind]
        yield from (f"  {fault.place}: {fault.message}" for fault in own[:LISTED])
        if len(own) > LISTED:
            yield f"  … and {len(own) - LISTED} more {FAULTS[kind]}"


def _with_names(read: Sequence[Answers]) -> list[Answers]:
    """Models of the same name are told apart by their files.

    Raises:
        ValueError: that does not help.
    """
    doubled = {name for name, count in Counter(answers.name for answers in read).items() if count > 1}
    named = [
        Answers(Path(a.file).stem if a.name in doubled else a.name, a.file, a.texts, a.metadata, a.faults) for a in read
    ]
    if len({answers.name for answers in named}) < len(named):
        raise ValueError("two models have the same name. Give each --pred a --name of its own.")
    return named
