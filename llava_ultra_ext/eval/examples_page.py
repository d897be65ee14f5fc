"""One HTML page of examples that needs no network: frames, the chosen one, question, truth, each model's answer.

Questions, answers and names are other people's text: the template escapes them, and the page's own policy lets no
script run but the one it was written with. Pictures are shown from below the image folder only, and no path is.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from llava_ultra_ext.data.pictures import inside_folder, open_picture
from llava_ultra_ext.eval.examples import Example, choose, examples
from llava_ultra_ext.eval.gold import Gold
from llava_ultra_ext.eval.predictions import Answers

THUMBNAIL = (320, 240)
"""Pixels at most, one and a half times the size on the page, for fine screens."""

_TEMPLATE = "examples.html.j2"
_MARK = '<meta name="generator" content="llava-ultra report">'
_HEAD = 1000  # bytes in which the mark stands
_FILTERS = {
    "lang": "language",
    "answer_type": "answers",
    "modality": "modality",
    "content_type": "content",
    "site": "site",
    "split": "split",
}
"""Tags of a gold line that can be filtered by, and what the page calls them."""


class Model(NamedTuple):
    """A model and the letter that stands for it beside frames."""

    letter: str
    name: str


class Pictures:
    """Thumbnails by their content, so that each picture is in the page once.

    Args:
        folder: ``--image-folder``; None: no picture is looked for.
    """

    def __init__(self, folder: str | None) -> None:
        self.wanted = folder is not None
        self._folder = folder
        self._place_of: dict[str, int | None] = {}
        self._place_of_content: dict[str, int] = {}
        self.uris: list[str] = []

    def place(self, name: str) -> int | None:
        """The picture's place in `uris`; None where it is absent, unreadable, or outside the folder."""
        if name not in self._place_of:
            self._place_of[name] = self._load(name)
        return self._place_of[name]

    def _load(self, name: str) -> int | None:
        if self._folder is None or "\0" in name or not inside_folder(self._folder, name):
            return None
        try:
            uri = thumbnail(open_picture(os.path.join(self._folder, name)))
        except (OSError, ValueError):
            return None
        if uri not in self._place_of_content:
            self._place_of_content[uri] = len(self.uris)
            self.uris.append(uri)
        return self._place_of_content[uri]


def is_page(path: Path) -> bool:
    """Whether a file is a page that `page` made."""
    with path.open("rb") as file:
        return _MARK.encode() in file.read(_HEAD)


def thumbnail(picture: Image.Image) -> str:
    """A small JPEG as data URI. Pictures of more than 8 bits are stretched from their darkest to their brightest."""
    if picture.mode.startswith(("I", "F")):
        grey = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        low, span = grey.min(), np.ptp(grey) or 1
        picture = Image.fromarray((255 * (grey - low) / span).astype(np.uint8))
    small = (ImageOps.exif_transpose(picture) or picture).convert("RGB")
    small.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def page(
    golds: Sequence[Gold],
    models: Sequence[Answers],
    *,
    title: str,
    shown: Mapping[str, str],
    image_folder: str | None = None,
    count: int = 200,
    seed: int = 0,
) -> str:
    """The page.

    Args:
        golds: questions that every model answered.
        models: one or more.
        title: of the data set.
        shown: language -> tokenizer of F1 (the scores file's ``settings``).
        image_folder: where picture names start; None: frames are empty.
        count: examples at most.
        seed: of their choice (`examples.choose`).

    Raises:
        ValueError: jinja2 is not installed, or an unknown tokenizer.
    """
    environment = _environment()
    pictures = Pictures(image_folder)
    labels = [Model(_letter(place), model.name) for place, model in enumerate(models)]
    cards = [_card(one, pictures, labels) for one in examples(choose(golds, models, count, seed), models, shown)]
    return str(
        environment.get_template(_TEMPLATE).render(
            mark=_MARK,
            title=title,
            models=labels,
            cards=cards,
            filters=_filters(cards),
            any_disagree=any(card["data"].get("disagree") for card in cards),
            any_wrong_frame=any(card["data"].get("frame") for card in cards),
            any_frames=any(frame["marks"] for card in cards for frame in card["frames"]),
            any_pictures=any(card["frames"] for card in cards),
            pictures=pictures.uris,
            total=len(golds),
            seed=seed,
            tokenizers={gold.lang: shown[gold.lang] for gold in golds if not gold.closed},
        )
    )


def _environment() -> Any:
    try:
        import jinja2
    except ImportError:
        raise ValueError(
            "jinja2 is not installed, which the page of examples needs. Install it: pip install 'llava_ultra_ext[eval]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llava_ultra_ext.eval", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sha256"] = _sha256
    return environment


def _sha256(text: str) -> str:
    """As a content security policy wants it."""
    return base64.b64encode(hashlib.sha256(str(text).encode("utf-8")).digest()).decode()


def _letter(place: int) -> str:
    """A, B, … Z, A1, …"""
    return chr(ord("A") + place % 26) + (str(place // 26) if place >= 26 else "")


def _filters(cards: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Name, label and values of what can be told apart on this page."""
    values = {key: sorted({card["data"][key] for card in cards if key in card["data"]}) for key in _FILTERS}
    return [(key, label, values[key]) for key, label in _FILTERS.items() if len(values[key]) > 1]


def _card(example: Example, pictures: Pictures, models: Sequence[Model]) -> dict[str, Any]:
    """What the template needs of one example; `data` becomes the attributes that the filter reads."""
    gold = example.gold
    verdicts = {f"m{place}": "right" if reply.right else "wrong" for place, reply in enumerate(example.replies)}
    wrong_frame = [model.letter for model, reply in zip(models, example.replies, strict=True) if reply.wrong_frame]
    data = {key: gold.tags[key] for key in _FILTERS if key in gold.tags} | verdicts
    data |= {"disagree": "1"} if example.disagree else {}
    data |= {"frame": " ".join(["any", *wrong_frame])} if wrong_frame else {}
    answers = ["".join(piece.text for piece in reply.pieces if piece.kind != "missing") for reply in example.replies]
    any_marks = any(reply.chosen or reply.scores for reply in example.replies)
    data["text"] = _searchable(gold.id, gold.exam_id, gold.text, gold.answer, *answers)
    return {
        "gold": gold,
        "tags": [gold.tags[key] for key in _FILTERS if key in gold.tags],
        "data": data,
        "replies": list(zip(models, example.replies, strict=True)),
        "frames": [
            {
                "picture": pictures.place(name),
                "valid": frame in (gold.valid_frames or ()),
                "invalid": frame not in (gold.valid_frames or (frame,)),
                "marks": [
                    (model, frame in reply.chosen, reply.scores[frame] if reply.scores else None)
                    for model, reply in zip(models, example.replies, strict=True)
                    if reply.chosen or reply.scores
                ],
            }
            for frame, name in enumerate(gold.images if pictures.wanted or any_marks else ())
        ],
    }


def _searchable(*texts: str) -> str:
    return unicodedata.normalize("NFKC", "\n".join(texts)).lower()
