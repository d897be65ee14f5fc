"""Equal pictures under several names, and one picture or one exam in several splits.

Pictures are compared by a hash of their decoded pixels, so that a picture that was saved again without loss (PNG)
counts as equal, whatever its metadata, palette or alpha channel. A picture that was compressed again (JPEG) does not;
`near_duplicates` finds it by a perceptual hash.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from llava_ultra_ext.data.pictures import PROGRESS_FROM, Fault, check_picture, inside_folder, open_picture
from llava_ultra_ext.data.sources.source import Item

NEAR = 4
"""Bits of 64 in which the perceptual hashes of near-duplicates differ at most. Our choice: copies of one picture that
were compressed again differ by 0 to 2."""

_HASHED = 128
"""Pixels of the shorter side that a picture is averaged down to before its hash, which looks at 32 of them."""

_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Modes that become RGB without loss of what a picture shows; 16-bit pictures would be cut off."""


class Picture(NamedTuple):
    """What is known of a picture file: its fault, or the hash of its content."""

    fault: Fault | None
    content: str = ""


class Duplicates(NamedTuple):
    """What was found.

    Args:
        rows: lines of ``duplicates.jsonl``.
        across_splits: how many rows of pictures stand in more than one split.
        conflicts: how many rows have more than one label.
        exams_across_splits: how many exams do, with whatever pictures.
    """

    rows: list[dict[str, Any]]
    across_splits: int
    conflicts: int
    exams_across_splits: int = 0


def look_at(folder: Path, names: Iterable[str], workers: int = 4) -> dict[str, Picture]:
    """Check and hash pictures, with a progress bar from `pictures.PROGRESS_FROM` files on.

    Args:
        folder: where the names start.
        names: each picture once.
        workers: threads; Pillow decodes outside of Python's lock.
    """
    listed = list(names)
    inside = [name for name in listed if inside_folder(str(folder), name)]
    there = [name for name in inside if os.path.exists(folder / name)]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        found: Any = pool.map(lambda name: _look(str(folder / name)), there)
        if len(there) >= PROGRESS_FROM:
            from tqdm import tqdm

            found = tqdm(found, total=len(there), desc="comparing pictures", unit="file")
        pictures = dict(zip(there, found, strict=True))
    absent = Picture(Fault("missing_picture", "does not exist below --image-folder. Check the folder and the name."))
    outside = Picture(Fault("outside_folder", "lies outside --image-folder. Give a path relative to that folder."))
    for name in inside:
        pictures.setdefault(name, absent)
    return {name: pictures.get(name, outside) for name in listed}


def find_duplicates(items: Sequence[Item], splits: Mapping[str, str], pictures: Mapping[str, Picture]) -> Duplicates:
    """Equal pictures with different names, and names and exams that stand in more than one split.

    Args:
        items: all questions; those with a `split` of their own keep it.
        splits: study -> split, of the others.
        pictures: name -> what is known of it (`look_at`).
    """
    uses: dict[str, dict[str, set[str]]] = defaultdict(lambda: {"splits": set(), "labels": set(), "studies": set()})
    for item in items:
        for name in item.images:
            uses[name]["splits"].add(item.split or splits[item.study])
            uses[name]["studies"].add(item.study)
            if item.label:
                uses[name]["labels"].add(item.label)
    equal: dict[str, list[str]] = defaultdict(list)
    for name in uses:
        if pictures[name].content:
            equal[pictures[name].content].append(name)
    rows = [_row("content", names, uses) for names in equal.values() if len(names) > 1]
    rows += [_row("name", [name], uses) for name, use in uses.items() if len(use["splits"]) > 1]
    across = sum(len(row["splits"]) > 1 for row in rows)
    exams = _exams_in_several_splits(items, splits)
    return Duplicates([*rows, *exams], across, sum(len(row.get("labels", ())) > 1 for row in rows), len(exams))


def near_duplicates(pictures: Iterable[Image.Image], distance: int = NEAR) -> list[int | None]:
    """For each picture the first earlier one that looks the same, as a 0-based number; None for a new one.

    A picture is compared with new ones only, so that a slow sweep is not one long chain of near-duplicates. They are
    marked, not deleted: what to do with them is the caller's choice.

    Args:
        pictures: gone through once and not kept.
        distance: bits of the 64-bit perceptual hash (imagehash.phash).
    """
    try:
        from imagehash import ImageHash, phash
    except ImportError:
        raise RuntimeError("near-duplicates need `pip install llava_ultra_ext[hospital]` (imagehash).") from None
    marks: list[int | None] = []
    new: list[tuple[int, ImageHash]] = []
    for number, picture in enumerate(pictures):
        hashed = phash(picture.reduce(max(1, min(picture.size) // _HASHED)))
        same = next((other for other, known in new if known - hashed <= distance), None)
        if same is None:
            new.append((number, hashed))
        marks.append(same)
    return marks


def _exams_in_several_splits(items: Sequence[Item], splits: Mapping[str, str]) -> list[dict[str, Any]]:
    """Only an official split can have them."""
    held: dict[str, set[str]] = defaultdict(set)
    for item in items:
        held[item.study].add(item.split or splits[item.study])
    return [
        {"match": "exam", "splits": sorted(found), "studies": [study]}
        for study, found in held.items()
        if len(found) > 1
    ]


def _row(match: str, names: Sequence[str], uses: Mapping[str, Mapping[str, set[str]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"match": match}
    for key in ("splits", "labels", "studies"):
        values = sorted(set().union(*(uses[name][key] for name in names)))
        if values:
            row[key] = values
    pictures = [{"image": name, **{key: sorted(value) for key, value in uses[name].items() if value}} for name in names]
    return {**row, "pictures": pictures}


def _look(path: str) -> Picture:
    fault = check_picture(path)
    if fault is not None:
        return Picture(fault)
    try:
        picture = open_picture(path)
    except OSError:
        return Picture(Fault("truncated_picture", "is damaged or cut off. Export it again."))
    if picture.mode in _EIGHT_BIT:
        picture = picture.convert("RGB")
    content = hashlib.sha256(f"{picture.mode} {picture.size}".encode())
    content.update(picture.tobytes())
    return Picture(None, content.hexdigest())
