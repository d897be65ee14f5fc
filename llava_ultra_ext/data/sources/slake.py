"""SLAKE 1.0 (Liu et al. 2021): English and Chinese questions about CT, MRI and X-ray pictures, with an official split.

A folder with ``train.json``, ``validate.json`` and ``test.json``, or some of them. Its licence is CC BY 4.0.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.sources.source import (
    ANSWER_TYPES,
    LANGUAGES,
    SPLITS,
    Item,
    Reading,
    Skipped,
    add_lang_argument,
    choice_field,
    existing_folder,
    image_folder,
    read_json,
    record_list,
    text_field,
    wanted_languages,
)

SUMMARY = "SLAKE: bilingual questions about CT, MRI and X-ray, official split"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The source's flags."""
    parser.add_argument("folder", metavar="FOLDER", help="holds train.json, validate.json, test.json, or some of them")
    parser.add_argument("--image-folder", help="where xmlab1/source.jpg lies (FOLDER/imgs, or else FOLDER)")
    add_lang_argument(parser)


def read(options: argparse.Namespace) -> Reading:
    """Read the folder.

    Raises:
        ValueError: no split file, or a record that is not SLAKE's.
    """
    folder = existing_folder(options.folder, "FOLDER")
    files = {split: folder / f"{split}.json" for split in SPLITS if (folder / f"{split}.json").exists()}
    if not files:
        raise ValueError(f"FOLDER {options.folder}: has none of {', '.join(f'{split}.json' for split in SPLITS)}.")
    default = folder / "imgs" if (folder / "imgs").is_dir() else folder
    items: list[Item] = []
    reading = Reading({"": items}, image_folder(options.image_folder, default), read=0, used=0, official_split=True)
    first: dict[int, str] = {}
    for split, path in files.items():
        for position, record in enumerate(record_list(read_json(path, "FOLDER"), str(path))):
            place = f"{path.name} #{position}"
            item = _item(record, split, place)
            if item.id in first:
                raise ValueError(f"{place}: `qid` {item.id} stands at {first[int(item.id)]} already. Ids are unique.")
            first[int(item.id)] = place
            _file(item, place, wanted_languages(options.lang), items, reading)
    reading.used = len(items)
    asked = Counter((item.split, item.images, item.question) for item in items)
    reading.notes["questions_asked_again"] = sum(count - 1 for count in asked.values())
    return reading


def _file(item: Item, place: str, languages: tuple[str, ...], items: list[Item], reading: Reading) -> None:
    reading.read += 1
    if item.lang not in languages:
        reading.left_out[f"lang_{item.lang}"] += 1
    elif not item.question or not item.answer:
        reason = "empty_question" if not item.question else "empty_answer"
        reading.skipped.append(Skipped(place, item.id, reason))
    else:
        items.append(item)


def _item(record: Any, split: str, place: str) -> Item:
    name = text_field(record, "img_name", place)
    qid = record.get("qid")
    if type(qid) is not int:
        raise ValueError(f"{place}: `qid` is of type {type(qid).__name__}; must be a whole number.")
    if not name:
        raise ValueError(f"{place} (qid {qid}): `img_name` is empty; must be a file name.")
    place = f"{place} (qid {qid})"
    return Item(
        id=qid,
        study=Path(name).parent.name or Path(name).stem,
        images=(name,),
        question=text_field(record, "question", place),
        answer=text_field(record, "answer", place),
        lang=choice_field(record, "q_lang", place, LANGUAGES),
        answer_type=choice_field(record, "answer_type", place, ANSWER_TYPES),
        split=split,
        modality=text_field(record, "modality", place, default=""),
        content_type=text_field(record, "content_type", place, default=""),
        site=text_field(record, "location", place, default=""),
    )
