"""OpenI-zh (XrayGLM's translation of the Indiana chest X-rays): Chinese reports, one or several pictures each.

``openi-zh.json`` repeats a report for each of its pictures; here a study (``162`` of ``162_1``) is one exam. XrayGLM
has no held-out split, so a seeded one by study is made. Its licence is CC BY-NC-SA 4.0.

Our choice: where the pictures of a study have different texts (the same report, translated anew for each), the answer
is the most frequent text, the first in picture order among equals; the others are kept as ``other_answers``. The texts
stay as they are, mask artefacts and closing advice included; the card counts them.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from llava_ultra_ext.data.sources.chest_findings import is_abnormal
from llava_ultra_ext.data.sources.source import (
    Item,
    Reading,
    Skipped,
    add_split_arguments,
    existing_folder,
    image_folder,
    read_json,
    record_list,
    text_field,
)

SUMMARY = "OpenI-zh: Chinese chest X-ray reports, several pictures a study, seeded split by study"

QUESTION = "请描述该胸部X光图像的影像所见。"
"""Asked of every study that is held out; one of `QUESTIONS` is asked in training."""

QUESTIONS = (
    QUESTION,
    "请给出该胸部X光检查的报告。",
    "这组胸部X光图像显示了什么？",
    "请根据胸部X光图像描述检查结果。",
    "请解读该胸部X光检查。",
)

_MASK = "X" * 4
"""OpenI hides names and dates behind it."""

_ADVICE = re.compile("[？?]|建议|咨询|随访|请|您|你")


class Caption(NamedTuple):
    """A picture's text, as the file has it."""

    image_id: str
    study: str
    number: int
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The source's flags."""
    parser.add_argument("folder", metavar="FOLDER", help="holds openi-zh.json")
    parser.add_argument("--image-folder", help="where 162_1.png lies (FOLDER)")
    parser.add_argument("--lang", default="zh", help="zh: the source is Chinese only")
    add_split_arguments(parser)


def read(options: argparse.Namespace) -> Reading:
    """Read the folder.

    Raises:
        ValueError: another language, no such file, or an annotation that is not XrayGLM's.
    """
    if options.lang != "zh":
        raise ValueError(f"--lang {options.lang}: OpenI-zh is Chinese only. Leave the flag out, or give zh.")
    folder = existing_folder(options.folder, "FOLDER")
    data = read_json(folder / "openi-zh.json", "FOLDER")
    if isinstance(data, dict):
        if "annotations" not in data:
            raise ValueError(f"FOLDER {options.folder}: openi-zh.json has no `annotations`. Give XrayGLM's file.")
        data = data["annotations"]
    records = record_list(data, f"FOLDER {options.folder}: openi-zh.json")
    reading = Reading({}, image_folder(options.image_folder, folder), read=len(records), used=0)
    studies: dict[str, list[Caption]] = {}
    for caption in _captions(records, reading):
        studies.setdefault(caption.study, []).append(caption)
    items = [_item(study, captions, reading) for study, captions in studies.items()]
    reading.versions[""] = items
    texts = [caption.text for captions in studies.values() for caption in captions]
    reading.notes |= {
        "studies_with_different_texts": sum(bool(item.other_answers) for item in items),
        "captions_with_mask_artefact": sum(_MASK in text for text in texts),
        "captions_with_question_or_advice_at_the_end": sum(ends_chatty(text) for text in texts),
    }
    return reading


def train_question(study: str) -> str:
    """One of `QUESTIONS`, by the study's id."""
    return QUESTIONS[int(hashlib.sha256(study.encode()).hexdigest(), 16) % len(QUESTIONS)]


def ends_chatty(text: str) -> bool:
    """Whether the last sentence asks the reader something or gives advice."""
    sentences = [part for part in re.split("(?<=[。！!？?])", text.strip()) if part.strip()]
    return bool(sentences) and _ADVICE.search(sentences[-1]) is not None


def _captions(records: list[Any], reading: Reading) -> list[Caption]:
    captions: list[Caption] = []
    seen: dict[str, int] = {}
    for position, record in enumerate(records):
        place = f"openi-zh.json #{position}"
        image_id = text_field(record, "image_id", place)
        study, _, number = image_id.rpartition("_")
        if not study or not (number.isascii() and number.isdigit()):
            raise ValueError(f"{place}: `image_id` {image_id!r} is not study_number, as 162_1 is.")
        if image_id in seen:
            raise ValueError(f"{place}: `image_id` {image_id} stands at #{seen[image_id]} already. Ids are unique.")
        seen[image_id] = position
        text = text_field(record, "caption", place)
        if text:
            captions.append(Caption(image_id, study, int(number), text))
        else:
            reading.skipped.append(Skipped(place, image_id, "empty_caption"))
    reading.used = len(captions)
    return captions


def _item(study: str, captions: list[Caption], reading: Reading) -> Item:
    ordered = sorted(captions, key=lambda caption: caption.number)
    (text, _), *others = Counter(caption.text for caption in ordered).most_common()
    label = "abnormal" if is_abnormal(text) else "normal"
    return Item(
        id=f"openi-{study}",
        study=study,
        images=tuple(_picture(reading.image_folder, caption.image_id) for caption in ordered),
        question=train_question(study),
        answer=text,
        lang="zh",
        answer_type="OPEN",
        modality="X-Ray",
        content_type=label,
        site="胸部",
        findings=text,
        label=label,
        other_answers=tuple(other for other, _ in others),
        held_out_question=QUESTION,
    )


def _picture(folder: Path, name: str) -> str:
    """The picture's file name: PNG, or JPEG where only that is there."""
    jpeg = (folder / f"{name}.jpg").exists() and not (folder / f"{name}.png").exists()
    return f"{name}.jpg" if jpeg else f"{name}.png"
