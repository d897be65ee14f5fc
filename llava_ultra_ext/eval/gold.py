"""Gold files: what is asked, and the true answer. JSON lines of `llava-ultra import`, or LLaVA-Med's test list.

Every line is checked (`data.gold_record`), and every fault is named with its line, before anything is
scored. No torch, no LLaVA.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.gold_record import TAGS, Gold, question_id, read_record
from llava_ultra_ext.data.json_lines import json_fault, read_json_lines, read_text

__all__ = ["LISTED", "TAGS", "Gold", "fingerprint", "of_language", "question_id", "read_gold"]

LISTED = 10
"""How many faults of a file an error shows."""

_FLAG = "--gold"


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
            gold = read_record(record, number)
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
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{_FLAG} {path}: is no list of questions ({json_fault(error)}). Give JSON lines, or LLaVA-Med's list."
        ) from None
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
