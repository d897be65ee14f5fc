"""The one record type of the package: an exam, that is pictures, a conversation about them, and what is known of them.

A record is an entry of LLaVA's training list whose ``image`` may be a list, with optional keys (``exam_id``,
``findings``, ``site``, ``modality``, ``valid_frames``). Errors name the sample id and never quote patient text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

IMAGE_TOKEN = "<image>"
"""LLaVA's ``constants.DEFAULT_IMAGE_TOKEN``: part of its file format."""

IMAGE_RUN = re.compile(rf"{IMAGE_TOKEN}(?:\s*{IMAGE_TOKEN})*")
"""A redundancy group in a turn: ``<image>`` tokens with only white space between them."""

_SPEAKERS = ("human", "gpt")
_KNOWN = ("id", "exam_id", "image", "conversations", "findings", "site", "modality", "valid_frames")


class BadSample(ValueError):
    """A sample that cannot be trained on.

    Args:
        sample_id: the record's ``id``.
        reason: short name of the kind of fault, for counting.
        message: what was given, what is allowed, what to do; no patient text, no file names.
    """

    def __init__(self, sample_id: str, reason: str, message: str) -> None:
        super().__init__(f"sample {sample_id}: {message}")
        self.sample_id = sample_id
        self.reason = reason
        self.message = message


class Turn(NamedTuple):
    """One utterance; `speaker` is ``human`` or ``gpt``, as in LLaVA's files."""

    speaker: str
    text: str


@dataclass(frozen=True)
class Exam:
    """One training sample.

    Args:
        id: sample id; several samples (questions) may share an exam.
        images: picture paths relative to the image folder, in the order of the ``<image>`` tokens; empty: text only.
        conversations: turns, human first, strictly alternating.
        exam_id: the exam that the sample belongs to; empty when the file has none.
        findings: what the sonographer saw (超声所见), read by the teacher only; empty when unknown.
        site: body part; empty when unknown.
        modality: for example ``ultrasound``; empty when unknown.
        valid_frames: 0-based indices of the frames that show what the text says; None when unknown.
        extra: keys of the record that the package does not know.
    """

    id: str
    images: tuple[str, ...]
    conversations: tuple[Turn, ...]
    exam_id: str = ""
    findings: str = ""
    site: str = ""
    modality: str = ""
    valid_frames: tuple[int, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: Any, position: int = 0) -> Exam:
        """Check one entry of a training file.

        Args:
            record: the entry as JSON gave it.
            position: its 0-based place in the file; names an entry without ``id``.

        Raises:
            BadSample: the first fault found.
        """
        if not isinstance(record, Mapping):
            raise BadSample(f"#{position}", "not_a_record", f"a JSON {type(record).__name__}, must be an object {{…}}.")
        given = record.get("id")
        sample_id = str(given) if isinstance(given, (str, int)) and str(given) else f"#{position}"
        exam = cls(
            id=sample_id,
            images=_images(record, sample_id),
            conversations=_turns(record, sample_id),
            valid_frames=_valid_frames(record, sample_id),
            extra={key: value for key, value in record.items() if key not in _KNOWN},
            **{key: _text(record, key, sample_id) for key in ("exam_id", "findings", "site", "modality")},
        )
        _check_counts(exam)
        return exam

    @property
    def score_key(self) -> str:
        """Under which the exam's frame scores are stored: the exam id, or the sample id where there is none."""
        return self.exam_id or self.id

    @property
    def groups(self) -> tuple[range, ...]:
        """Frame indices of each redundancy group, in reading order."""
        found: list[range] = []
        for turn in self.conversations:
            for run in IMAGE_RUN.finditer(turn.text):
                start = found[-1].stop if found else 0
                found.append(range(start, start + run.group().count(IMAGE_TOKEN)))
        return tuple(found)

    def keep_frames(self, frames: Sequence[int]) -> Exam:
        """The same exam with some of its frames only, in their old order.

        Surplus ``<image>`` tokens go with the white space behind them, and ``valid_frames`` is renumbered.

        Args:
            frames: 0-based indices of the frames to keep; at least one of each group.
        """
        kept = sorted(set(frames))
        seen = -1

        def token(match: re.Match[str]) -> str:
            nonlocal seen
            seen += 1
            return match.group() if seen in kept else ""

        turns = tuple(Turn(turn.speaker, re.sub(rf"{IMAGE_TOKEN}\s*", token, turn.text)) for turn in self.conversations)
        valid = self.valid_frames
        return dataclasses.replace(
            self,
            images=tuple(self.images[index] for index in kept),
            conversations=turns,
            valid_frames=None if valid is None else tuple(kept.index(index) for index in valid if index in kept),
        )


def _bad(sample_id: str, reason: str, message: str) -> NoReturn:
    raise BadSample(sample_id, reason, message)


def _images(record: Mapping[str, Any], sample_id: str) -> tuple[str, ...]:
    if "image" not in record:
        return ()
    given = record["image"]
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        _bad(
            sample_id,
            "image_type",
            f"`image` is {_kind(given)}; must be a file name or a list of file names. "
            "Leave the key out of a text-only sample.",
        )
    if not names:
        _bad(
            sample_id,
            "no_images",
            "`image` is an empty list; give at least one file name, or leave the key out of a text-only sample.",
        )
    for name in names:
        _check_encodable(name, "a file name in `image`", sample_id)
    return tuple(names)


def _turns(record: Mapping[str, Any], sample_id: str) -> tuple[Turn, ...]:
    given = record.get("conversations")
    if not isinstance(given, list) or not given:
        what = "is missing" if given is None else "is empty" if given == [] else f"is {_kind(given)}"
        _bad(sample_id, "no_conversation", f"`conversations` {what}; must be a list of human and gpt turns.")
    turns = [_turn(item, index, sample_id) for index, item in enumerate(given)]
    if turns[0].speaker == "gpt":
        turns = turns[1:]  # LLaVA's preprocess_* drop an opening gpt turn too; its own mixes contain some.
    if not any(turn.speaker == "gpt" for turn in turns):
        _bad(sample_id, "no_answer", "no gpt turn answers a human turn: there is nothing to learn. Add the answer.")
    for index, turn in enumerate(turns):
        if turn.speaker != _SPEAKERS[index % 2]:
            _bad(
                sample_id,
                "turn_order",
                f"two {turn.speaker} turns in a row; human and gpt must alternate. Merge or drop one of them.",
            )
    return tuple(turns)


def _turn(item: Any, index: int, sample_id: str) -> Turn:
    speaker, text = (item.get("from"), item.get("value")) if isinstance(item, Mapping) else (None, None)
    if speaker not in _SPEAKERS:
        _bad(sample_id, "speaker", f"turn {index} has no `from` of {' or '.join(_SPEAKERS)}. Rename its speaker.")
    if not isinstance(text, str) or not text.strip():
        _bad(sample_id, "empty_turn", f"turn {index} has no text; `value` must be a non-empty string.")
    _check_encodable(text, f"turn {index}", sample_id)
    if speaker == "gpt" and IMAGE_TOKEN in text:
        _bad(sample_id, "image_in_answer", f"turn {index} is an answer with {IMAGE_TOKEN}; move it to the question.")
    return Turn(speaker, text)


def _valid_frames(record: Mapping[str, Any], sample_id: str) -> tuple[int, ...] | None:
    given = record.get("valid_frames")
    if given is None:
        return None
    if not isinstance(given, list) or not all(type(index) is int for index in given):
        _bad(
            sample_id,
            "valid_frames_type",
            f"`valid_frames` is {_kind(given)}; must be a list of frame numbers, the first frame is 0.",
        )
    return tuple(sorted(set(given)))


def _text(record: Mapping[str, Any], key: str, sample_id: str) -> str:
    given = record.get(key)
    if given is None:
        return ""
    if key == "exam_id" and type(given) is int:
        return str(given)
    if not isinstance(given, str):
        _bad(sample_id, f"{key}_type", f"`{key}` is {_kind(given)}; must be a string. Leave it out when unknown.")
    _check_encodable(given, f"`{key}`", sample_id)
    return given.strip()


def _check_encodable(text: str, what: str, sample_id: str) -> None:
    """JSON may hold half of a surrogate pair, which no tokenizer and no file name takes; and NUL ends a file name."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        _bad(
            sample_id,
            "broken_text",
            f"{what} holds a character that is no text (NUL or half a surrogate pair). Repair it.",
        )


def _check_counts(exam: Exam) -> None:
    tokens = sum(turn.text.count(IMAGE_TOKEN) for turn in exam.conversations)
    if tokens != len(exam.images):
        _bad(
            exam.id,
            "image_tokens",
            f"{len(exam.images)} pictures and {tokens} {IMAGE_TOKEN} tokens; the questions must hold exactly one "
            f"{IMAGE_TOKEN} for each picture. Add or remove tokens.",
        )
    outside = [index for index in exam.valid_frames or () if not 0 <= index < len(exam.images)]
    if outside:
        _bad(
            exam.id,
            "valid_frames_range",
            f"`valid_frames` holds {outside[0]}, the exam has {len(exam.images)} frames; "
            f"allowed are 0 to {len(exam.images) - 1}.",
        )


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"a list with {type(value[0]).__name__} entries" if value else "an empty list"
    return "null" if value is None else f"of type {type(value).__name__}"
