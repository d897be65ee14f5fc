"""One line of a gold file: what is asked, the true answer, and every check that both must pass.

``llava-ultra import`` runs the checks on what it writes, ``llava-ultra score`` on what it reads. No torch, no LLaVA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_ultra_ext.data.languages import has_chinese, says_nothing

TAGS = ("lang", "answer_type", "modality", "content_type", "site", "split")
"""Keys of a gold line by whose values figures are given apart."""


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


class BadGold(ValueError):
    """A line that is no gold; `reason` is short, for lists and counts. No text of the line is quoted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_record(record: Any, line: int) -> Gold:
    """Check one line.

    Args:
        record: what JSON gave.
        line: its number.

    Raises:
        BadGold: the first fault found.
    """
    if not isinstance(record, Mapping):
        what = f"a JSON {type(record).__name__}; must be an object {{…}}, one question a line."
        raise BadGold("no_object", what)
    missing = [key for key in ("question_id", "text", "answer") if record.get(key) is None]
    if missing:
        absent = " and no ".join(f"`{key}`" for key in missing)
        raise BadGold("key_missing", f"has no {absent}. Needed: question_id, text, answer.")
    text, answer = (_string(record, key) for key in ("text", "answer"))
    if says_nothing(answer):
        what = "`answer` is empty or nothing but punctuation: no answer can match it. Correct or remove it."
        raise BadGold("answer_says_nothing", what)
    tags = {key: tag for key in TAGS if (tag := _tag(record, key))}
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
        exam_id=_tag(record, "exam_id"),
    )


def question_id(given: Any) -> str:
    """A question's id as a string.

    Raises:
        BadGold: neither a number nor a string.
    """
    if type(given) not in (int, str) or given == "":
        raise BadGold("question_id", "`question_id` must be a number or a string.")
    return str(given)


def _string(record: Mapping[str, Any], key: str) -> str:
    given = record[key]
    if isinstance(given, str) and not given.strip():
        raise BadGold(f"empty_{key}", f"`{key}` must be a string that is not empty.")
    return _text(given, key)


def _tag(record: Mapping[str, Any], key: str) -> str:
    """A value by which questions are told apart; empty: the line has none."""
    given = record.get(key)
    return "" if given is None else _text(given, key)


def _text(given: Any, key: str) -> str:
    """A string as it is, a number as JSON writes it.

    Raises:
        BadGold: anything else; Python's JSON reader takes NaN and Infinity for numbers too.
    """
    if isinstance(given, str):
        return given
    if type(given) is float and not math.isfinite(given):
        raise BadGold(key, f"`{key}` is {given}, which JSON does not know. Write it as a string.")
    if type(given) not in (int, float):
        raise BadGold(key, f"`{key}` must be a string or a number, given is a JSON {type(given).__name__}.")
    return str(given)


def _lang(given: str | None, text: str, answer: str) -> str:
    chinese = has_chinese(text) or has_chinese(answer)
    if given is None:
        return "zh" if chinese else "en"
    lang = given.lower()
    if lang not in ("zh", "en"):
        raise BadGold("lang", f"`lang` is {given}; must be zh or en.")
    if (lang == "zh") != chinese:
        holds = "Chinese characters" if chinese else "no Chinese character"
        what = f"`lang` is {lang}, but question and answer hold {holds}. Correct `lang`."
        raise BadGold("lang_contradicts_text", what)
    return lang


def _answer_type(given: str | None) -> str:
    kind = (given or "OPEN").upper()
    if kind not in ("OPEN", "CLOSED"):
        what = f"`answer_type` is {given}; must be OPEN or CLOSED. Left out it is OPEN."
        raise BadGold("answer_type", what)
    return kind


def _images(given: Any) -> tuple[str, ...]:
    names = [given] if isinstance(given, str) else given or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadGold("image", "`image` must be a file name or a list of file names.")
    return tuple(names)


def _frames(given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not all(type(index) is int for index in given):
        raise BadGold("valid_frames", "`valid_frames` must be a list of frame numbers, the first frame is 0.")
    return tuple(given)
