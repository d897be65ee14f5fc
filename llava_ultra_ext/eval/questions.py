"""Question files, as LLaVA's evaluation scripts read them, with exams: every question is checked before a model loads.

JSON lines with ``question_id``, ``text``, and ``image``: a file name, a list of them (an exam), or absent (text only).
Gold files (``answer``, ``lang``, … beside them) are question files too. No torch, no LLaVA.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.exam import IMAGE_TOKEN
from llava_ultra_ext.data.json_lines import is_clean, read_json_lines
from llava_ultra_ext.data.pictures import check_pictures, inside_folder
from llava_ultra_ext.data.tokenize import place_images

LISTED = 10
"""How many bad questions an error shows."""


@dataclass(frozen=True)
class Question:
    """One line of a question file.

    Args:
        id: ``question_id``, as it stands in the file.
        text: what is asked.
        images: k picture names relative to the image folder, in order; empty: text only.
        valid_frames: 0-based frames that show the answer, for the ``oracle`` baseline; None when unknown.
    """

    id: int | str
    text: str
    images: tuple[str, ...] = ()
    valid_frames: tuple[int, ...] | None = None

    @property
    def prompt_text(self) -> str:
        """The human turn: ``<image>`` for each picture on a line of its own, then the text, as in training.

        A text that says itself where its pictures stand keeps them there (`tokenize.place_images`).
        """
        if IMAGE_TOKEN in self.text or not self.images:
            return place_images(self.text)
        return place_images(f"{IMAGE_TOKEN * len(self.images)}\n{self.text}")


def read_questions(path: str | Path, image_folder: str = "") -> list[Question]:
    """Read a question file and look at every line and every picture.

    Args:
        path: ``--question-file``.
        image_folder: ``--image-folder``.

    Raises:
        ValueError: the file is not JSON lines or has no question, or any question is bad; the first ones are listed.
    """
    questions: list[Question] = []
    faults: list[str] = []
    seen: dict[int | str, int] = {}
    for number, record in read_json_lines(path, "--question-file", "question").rows:
        try:
            question = _question(record)
            if question.id in seen:
                raise ValueError(
                    f"`question_id` {question.id} stands on line {seen[question.id]} already. Ids are unique."
                )
            seen[question.id] = number
            questions.append(question)
        except ValueError as fault:
            faults.append(f"line {number}: {fault}")
    faults += _picture_faults(questions, seen, image_folder)
    if faults:
        more = [f"… and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        raise ValueError("\n".join([f"--question-file {path}: {len(faults)} faults:", *faults[:LISTED], *more]))
    return questions


def chunk(questions: Sequence[Question], count: int, index: int) -> list[Question]:
    """LLaVA's ``get_chunk`` (``eval/model_vqa.py``): part `index` of `count` parts of equal, rounded-up size.

    Rounding up can leave the last parts empty; LLaVA fails there, an empty part is fine here.

    Raises:
        ValueError: no such part.
    """
    if count < 1 or not 0 <= index < count:
        raise ValueError(
            f"--num-chunks {count} --chunk-idx {index}: chunks are counted from 0; give 0 to num-chunks - 1."
        )
    size = math.ceil(len(questions) / count)
    return list(questions[index * size : (index + 1) * size])


def _question(record: Any) -> Question:
    """Check one line.

    Raises:
        ValueError: the first fault found.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"a JSON {type(record).__name__}; must be an object {{…}}, one question a line.")
    missing = [key for key in ("question_id", "text") if key not in record]
    if missing:
        raise ValueError(f"has no {' and no '.join(f'`{key}`' for key in missing)}. Needed: question_id, text, image.")
    given, text = record["question_id"], record["text"]
    if type(given) not in (int, str) or given == "":
        raise ValueError("`question_id` must be a number or a string.")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("`text` must be a string that is not empty.")
    for key, value in (("question_id", str(given)), ("text", text)):
        if not is_clean(value):
            raise ValueError(f"`{key}` holds a character that is no text (NUL or half a surrogate). Repair it.")
    images = _images(record)
    tokens = text.count(IMAGE_TOKEN)
    if tokens and tokens != len(images):
        raise ValueError(
            f"{len(images)} pictures and {tokens} {IMAGE_TOKEN} tokens in `text`. Write one {IMAGE_TOKEN} for each "
            "picture, or none: they are then put in front."
        )
    return Question(given, text, images, _valid_frames(record, len(images)))


def _images(record: Mapping[str, Any]) -> tuple[str, ...]:
    given = record.get("image")
    names = [given] if isinstance(given, str) else given
    if names is None:
        return ()
    if names == []:
        raise ValueError("`image` is an empty list; give at least one file name, or leave the key out for text only.")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError("`image` must be a file name or a list of file names.")
    if not all(map(is_clean, names)):
        raise ValueError("`image` holds a character that no file name has (NUL or half a surrogate). Repair it.")
    return tuple(names)


def _valid_frames(record: Mapping[str, Any], frames: int) -> tuple[int, ...] | None:
    given = record.get("valid_frames")
    if given is None:
        return None
    if not isinstance(given, list) or not all(type(index) is int and 0 <= index < frames for index in given):
        raise ValueError(f"`valid_frames` must be a list of frame numbers, 0 to {frames - 1} for {frames} pictures.")
    return tuple(sorted(set(given)))


def _picture_faults(questions: Sequence[Question], line_of: Mapping[int | str, int], folder: str) -> list[str]:
    """One sentence for each question with a bad picture, in the order of the file."""
    names = dict.fromkeys(name for question in questions for name in question.images if inside_folder(folder, name))
    faults = dict(zip(names, check_pictures([os.path.join(folder, name) for name in names]).values(), strict=True))
    found = []
    for question in questions:
        for index, name in enumerate(question.images, start=1):
            place = f"line {line_of[question.id]}: picture {index} of {len(question.images)}"
            if name not in names:
                found.append(f"{place} lies outside --image-folder. Give a path relative to that folder.")
                break
            fault = faults[name]
            if fault is not None:
                found.append(f"{place} {fault.message}")
                break
    return found
