"""Gold files: what is asked, and the true answer. JSON lines of `llava-ultra import`, or LLaVA-Med's test list.

Every line is checked, and every fault is named with its line, before anything is scored. No torch, no LLaVA.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.json_lines import read_json_lines, read_text
from llava_ultra_ext.eval.normalize import has_chinese, normalise

LISTED = 10
"""How many faults of a file an error shows."""

TAGS = ("lang", "answer_type", "modality", "content_type", "site", "split")
"""Keys of a gold line by whose values figures are given apart."""

_FLAG = "--gold"


@dataclass(frozen=True)
class Gold:
    """One question with its true answer.

    Args:
        id: ``question_id`` as a string: LLaVA-Med writes numbers where others write strings.
        line: its line in the file, or its place in the list, from 1.
        text: what is asked.
        answer: the truth.
        images: k picture names; empty: text only.
        lang: ``zh`` or ``en``; of the question's text where the file does not say.
        closed: whether one of a few answers is expected (``answer_type`` CLOSED); otherwise the answer is free text.
        tags: values of `TAGS` that the line has.
        valid_frames: 0-based frames that show the answer; None when unknown.
        exam_id: the exam; empty when unknown.
    """

    id: str
    line: int
    text: str
    answer: str
    images: tuple[str, ...] = ()
    lang: str = "zh"
    closed: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    valid_frames: tuple[int, ...] | None = None
    exam_id: str = ""


def read_gold(path: str | Path, lang: str | None = None) -> list[Gold]:
    """Read a gold file and look at every line.

    Args:
        path: ``--gold``.
        lang: keep the questions of this language only; None: all.

    Raises:
        ValueError: the file is unusable, or any line is bad; the first ones are listed.
    """
    found: list[Gold] = []
    faults: list[str] = []
    seen: dict[str, int] = {}
    unit = "entry" if _is_list(path) else "line"
    for number, record in _records(path):
        try:
            gold = _gold(record, number)
            if gold.id in seen:
                raise ValueError(f"`question_id` {gold.id} stands on {unit} {seen[gold.id]} already. Ids are unique.")
            seen[gold.id] = number
            found.append(gold)
        except ValueError as fault:
            faults.append(f"{unit} {number}: {fault}")
    if faults:
        more = [f"… and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        raise ValueError("\n".join([f"{_FLAG} {path}: {len(faults)} faults:", *faults[:LISTED], *more]))
    return of_language(found, lang)


def of_language(golds: Sequence[Gold], lang: str | None) -> list[Gold]:
    """The questions of one language; None: all.

    Raises:
        ValueError: there are none.
    """
    kept = [gold for gold in golds if lang in (None, gold.lang)]
    if not kept:
        known = ", ".join(sorted({gold.lang for gold in golds}))
        raise ValueError(f"--lang {lang}: no question of {_FLAG} has that language. It holds: {known}.")
    return kept


def fingerprint(golds: Sequence[Gold]) -> str:
    """A short name for what is scored against: ids, questions and truths, whatever their order."""
    units = sorted(json.dumps([gold.id, gold.text, gold.answer], ensure_ascii=False) for gold in golds)
    return hashlib.sha256("\n".join(units).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _records(path: str | Path) -> list[tuple[int, Any]]:
    """Lines, or the entries of LLaVA-Med's JSON list with their place in it."""
    if not _is_list(path):
        return read_json_lines(path, _FLAG, "question").rows
    try:
        entries = json.loads(read_text(path, _FLAG, "a gold file"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{_FLAG} {path}: line {error.lineno} is not JSON ({error.msg}).") from None
    return [(place, _of_llava_med(entry)) for place, entry in enumerate(entries, start=1)]


def _is_list(path: str | Path) -> bool:
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError:
        return False  # the reader says it better


def _of_llava_med(entry: Any) -> Any:
    """An entry of LLaVA-Med's test.json as a gold line; its data sets also spell the key `conversatons`."""
    if not isinstance(entry, Mapping):
        return entry
    turns = entry.get("conversations", entry.get("conversatons"))
    try:
        question, answer = turns[0]["value"], turns[1]["value"]
    except (TypeError, LookupError):
        return entry
    text = question.replace("<image>", "").strip() if isinstance(question, str) else question
    return {**entry, "question_id": entry.get("id"), "text": text, "answer": answer}


def _gold(record: Any, line: int) -> Gold:
    """Check one line.

    Raises:
        ValueError: the first fault found; no text of the line is quoted.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"a JSON {type(record).__name__}; must be an object {{…}}, one question a line.")
    missing = [key for key in ("question_id", "text", "answer") if record.get(key) is None]
    if missing:
        raise ValueError(f"has no {' and no '.join(f'`{key}`' for key in missing)}. Needed: question_id, text, answer.")
    text, answer = (_string(record, key) for key in ("text", "answer"))
    if not normalise(answer):
        raise ValueError("`answer` is empty or nothing but punctuation: no answer can match it. Correct or remove it.")
    tags = {key: str(record[key]) for key in TAGS if record.get(key) not in (None, "")}
    tags["lang"] = _lang(tags.get("lang"), text, answer)
    tags["answer_type"] = _answer_type(tags.get("answer_type"))
    return Gold(
        id=question_id(record["question_id"]),
        line=line,
        text=text,
        answer=answer,
        images=_images(record.get("image")),
        lang=tags["lang"],
        closed=tags["answer_type"] == "CLOSED",
        tags=tags,
        valid_frames=_frames(record.get("valid_frames")),
        exam_id=str(record.get("exam_id") or ""),
    )


def question_id(given: Any) -> str:
    """A question's id as a string.

    Raises:
        ValueError: neither a number nor a string.
    """
    if type(given) not in (int, str) or given == "":
        raise ValueError("`question_id` must be a number or a string.")
    return str(given)


def _string(record: Mapping[str, Any], key: str) -> str:
    given = record[key]
    if type(given) in (int, float):
        return str(given)
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"`{key}` must be a string that is not empty.")
    return given


def _lang(given: str | None, text: str, answer: str) -> str:
    chinese = has_chinese(text) or has_chinese(answer)
    if given is None:
        return "zh" if chinese else "en"
    lang = given.lower()
    if lang not in ("zh", "en"):
        raise ValueError(f"`lang` is {given}; must be zh or en.")
    if (lang == "zh") != chinese:
        holds = "Chinese characters" if chinese else "no Chinese character"
        raise ValueError(f"`lang` is {lang}, but question and answer hold {holds}. Correct `lang`.")
    return lang


def _answer_type(given: str | None) -> str:
    kind = (given or "OPEN").upper()
    if kind not in ("OPEN", "CLOSED"):
        raise ValueError(f"`answer_type` is {given}; must be OPEN or CLOSED. Left out it is OPEN.")
    return kind


def _images(given: Any) -> tuple[str, ...]:
    names = [given] if isinstance(given, str) else given or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("`image` must be a file name or a list of file names.")
    return tuple(names)


def _frames(given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not all(type(index) is int for index in given):
        raise ValueError("`valid_frames` must be a list of frame numbers, the first frame is 0.")
    return tuple(given)
