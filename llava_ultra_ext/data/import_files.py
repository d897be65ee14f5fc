"""What ``llava-ultra import`` writes: the records of each kind, and the card that names every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.exam import IMAGE_TOKEN, Exam
from llava_ultra_ext.data.gold_record import BadGold, read_record
from llava_ultra_ext.data.sources.source import SPLITS, Item

FORMAT = "ultra_import/1"
CARD = "import.json"
SUBFOLDERS = ("with_site", "without_site")
REPORTS = ("missing.jsonl", "duplicates.jsonl", "skipped.jsonl")
FILES = frozenset(
    (CARD, *REPORTS, *(f"{split}{end}" for split in SPLITS for end in (".json", "_questions.jsonl", "_gold.jsonl")))
)
"""Every name that an import may write."""


def question_of(item: Item, split: str) -> str:
    """What is asked in a split."""
    return item.held_out_question if item.held_out_question and split != "train" else item.question


def training_record(item: Item, split: str) -> dict[str, Any]:
    """An entry of the training list, checked.

    Raises:
        BadSample: `Exam` would not take it.
    """
    question = question_of(item, split)
    tokens = "" if IMAGE_TOKEN in question else f"{IMAGE_TOKEN}\n" * len(item.images)
    record = {
        "id": str(item.id),
        "exam_id": item.study,
        **_image(item),
        **_known(site=item.site, modality=item.modality, findings=item.findings, valid_frames=item.valid_frames),
        **_known(other_findings=item.other_answers),
        "conversations": [{"from": "human", "value": tokens + question}, {"from": "gpt", "value": item.answer}],
    }
    Exam.from_record(record)
    return record


def question_record(item: Item, split: str) -> dict[str, Any]:
    """A line of the question file."""
    return {"question_id": item.id, **_image(item), "text": question_of(item, split)}


def gold_record(item: Item, split: str) -> dict[str, Any]:
    """A line of the gold file."""
    return {
        **question_record(item, split),
        "answer": item.answer,
        "lang": item.lang,
        "answer_type": item.answer_type,
        **_known(modality=item.modality, content_type=item.content_type, site=item.site),
        "exam_id": item.study,
        **_known(valid_frames=item.valid_frames, other_answers=item.other_answers),
        "split": split,
    }


def gold_fault(item: Item) -> str:
    """Why `llava-ultra score` would refuse an item's gold line, whatever its split; empty: it would not."""
    try:
        for split in SPLITS:
            read_record(gold_record(item, split), line=1)
    except BadGold as fault:
        return fault.reason
    return ""


def write_splits(folder: Path, items: Mapping[str, Iterable[Item]]) -> None:
    """The three files of each split.

    Args:
        folder: exists.
        items: split -> its questions, in order.

    Raises:
        BadSample: a training record is not usable.
    """
    for split, rows in items.items():
        listed = list(rows)
        write_list(folder / f"{split}.json", [training_record(item, split) for item in listed])
        write_lines(folder / f"{split}_questions.jsonl", (question_record(item, split) for item in listed))
        write_lines(folder / f"{split}_gold.jsonl", (gold_record(item, split) for item in listed))


def write_list(path: Path, rows: Iterable[Any]) -> None:
    """A JSON list, a row a line."""
    path.write_text("[\n" + ",\n".join(_dump(row) for row in rows) + "\n]\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_dump(row) + "\n" for row in rows)


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """``import.json``, last: it names the other files with their content, by which a later import knows them."""
    files = {path.name: content_hash(path) for path in sorted(folder.iterdir()) if path.is_file()}
    text = json.dumps({"format": FORMAT, **card, "files": files}, ensure_ascii=False, indent=2)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def content_hash(path: Path) -> str:
    """SHA-256 of a file, as the card names it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _image(item: Item) -> dict[str, Any]:
    if not item.images:
        return {}
    return {"image": item.images[0] if len(item.images) == 1 else list(item.images)}


def _known(**values: Any) -> dict[str, Any]:
    """Without what is unknown; tuples as lists. No valid frame (an empty tuple) is known, and is kept."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value is not None and value != "" and (value != () or key == "valid_frames")
    }


def _dump(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False)
