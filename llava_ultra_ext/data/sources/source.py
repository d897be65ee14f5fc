"""What every source yields, questions with their answers and what could not be used; and the checks they share."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.exam import IMAGE_TOKEN
from llava_ultra_ext.data.json_lines import is_clean, json_fault, read_text

SPLITS = ("train", "validate", "test")
LANGUAGES = ("zh", "en")
ANSWER_TYPES = ("OPEN", "CLOSED")


@dataclass(frozen=True)
class Item:
    """One question about one exam, with its answer.

    Args:
        id: question id, unique in the import.
        study: exam id; what a split keeps together.
        images: k picture names relative to the image folder, in order; empty: text only.
        question: may hold `<image>` tokens, one for each picture, where the pictures do not stand in front.
        answer: the expected answer.
        lang: ``zh`` or ``en``.
        answer_type: ``OPEN`` or ``CLOSED``.
        split: the official one; empty: a split is made.
        label: class of the exam, to find equal pictures that contradict each other; empty: the source has none.
        other_answers: other wordings of the answer.
        valid_frames: 0-based frames that show what the text says; None when unknown.
        held_out_question: asked instead of `question` outside of the training split; empty: the same question.
    """

    id: int | str
    study: str
    images: tuple[str, ...]
    question: str
    answer: str
    lang: str
    answer_type: str
    split: str = ""
    modality: str = ""
    content_type: str = ""
    site: str = ""
    findings: str = ""
    label: str = ""
    other_answers: tuple[str, ...] = ()
    valid_frames: tuple[int, ...] | None = None
    held_out_question: str = ""


@dataclass(frozen=True)
class Skipped:
    """A record, or a question, that was left out: where it stood, its id, and a short reason; no text of it."""

    place: str
    id: int | str
    reason: str


@dataclass
class Reading:
    """A source, read.

    ``read = used + left out + skipped`` holds for its records: nothing is dropped in silence.

    Args:
        versions: sub-folder of the output -> items, in the source's order; most sources have one version, "".
        image_folder: where picture names start.
        read: records that the source holds.
        used: records that became items.
        skipped: records that could not be used.
        left_out: reason -> records that were not asked for (another language, mask files).
        official_split: the items say their split; otherwise one is made.
        notes: further counts for the card.
    """

    versions: dict[str, list[Item]]
    image_folder: Path
    read: int
    used: int
    skipped: list[Skipped] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    official_split: bool = False
    notes: dict[str, int] = field(default_factory=dict)


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the sources that have no official split."""
    parser.add_argument(
        "--split", default="0.8,0.1,0.1", metavar="A,B,C", help="shares of train, validate and test (0.8,0.1,0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (0)")


def add_lang_argument(parser: argparse.ArgumentParser) -> None:
    """``--lang``."""
    parser.add_argument("--lang", choices=(*LANGUAGES, "both"), default="both", help="questions to keep (both)")


def wanted_languages(lang: str) -> tuple[str, ...]:
    """The languages that ``--lang`` asks for."""
    return LANGUAGES if lang == "both" else (lang,)


def existing_folder(given: str, flag: str) -> Path:
    """A folder that the command line names.

    Raises:
        ValueError: there is no such folder.
    """
    folder = Path(given).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{flag} {given}: {what}. Give the folder that holds the source's files.")
    return folder


def image_folder(given: str | None, default: Path) -> Path:
    """``--image-folder``, or the source's default.

    Raises:
        ValueError: the folder that was named does not exist.
    """
    return default if given is None else existing_folder(given, "--image-folder")


def read_json(path: Path, flag: str) -> Any:
    """A JSON file in UTF-8.

    Raises:
        ValueError: it cannot be read, is not UTF-8 or not JSON.
    """
    text = read_text(path, flag, "a JSON file")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{flag} {path}: is not JSON (line {error.lineno}, column {error.colno}: {error.msg}). "
            "Give the file as the source publishes it; a JSON list is needed."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{flag} {path}: is no list of records ({json_fault(error)}). Check the file.") from None


def record_list(records: Any, place: str) -> list[Any]:
    """A JSON list with entries.

    Raises:
        ValueError: it is none, or is empty.
    """
    if not isinstance(records, list):
        raise ValueError(f"{place}: holds a JSON {type(records).__name__}; a list of records is needed, [{{…}}, …].")
    if not records:
        raise ValueError(f"{place}: the list is empty; at least one record is needed.")
    return records


def text_field(record: Any, key: str, place: str, *, default: str | None = None) -> str:
    """A string of a record, stripped.

    Args:
        record: the record as JSON gave it.
        key: which of its keys.
        place: the record's name, for messages.
        default: the value of an absent key; None: the key must be there.

    Raises:
        ValueError: the record is no object, the key is absent, or the value is not a clean string.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{place}: a JSON {type(record).__name__}; must be an object {{…}}.")
    value = record.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        given = "is missing" if key not in record else f"is of type {type(value).__name__}"
        raise ValueError(f"{place}: `{key}` {given}; must be a string.")
    if not is_clean(value):
        raise ValueError(f"{place}: `{key}` holds a character that is no text (NUL or half a surrogate). Repair it.")
    if IMAGE_TOKEN in value:
        raise ValueError(f"{place}: `{key}` holds {IMAGE_TOKEN}, which stands for a picture. Remove it.")
    return value.strip()


def choice_field(record: Any, key: str, place: str, allowed: tuple[str, ...], *, default: str | None = None) -> str:
    """A string of a record that is one of a few.

    Raises:
        ValueError: as `text_field`, or another value.
    """
    value = text_field(record, key, place, default=default)
    if value not in allowed and value != default:
        raise ValueError(f"{place}: `{key}` is {value!r}; allowed: {', '.join(allowed)}.")
    return value
