"""BUSI (Al-Dhabyani et al. 2020): breast ultrasound pictures in the folders benign, malignant and normal.

Each picture is an exam with one closed question, its class. Lesion masks (``*_mask*``) are not used. The set is known
for equal pictures under several names and in several classes: the importer keeps them in one split and reports them.
Its licence is CC BY 4.0.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from llava_ultra_ext.data.json_lines import is_clean
from llava_ultra_ext.data.sources.source import (
    Item,
    Reading,
    add_lang_argument,
    add_split_arguments,
    existing_folder,
    image_folder,
    wanted_languages,
)

SUMMARY = "BUSI: breast ultrasound, benign, malignant or normal, seeded split"

CLASSES = {"benign": "良性", "malignant": "恶性", "normal": "正常"}
"""Folder -> the answer in Chinese."""

QUESTIONS = {
    "zh": "该乳腺超声图像属于哪一类：良性、恶性还是正常？",
    "en": "Which class does this breast ultrasound image belong to: benign, malignant or normal?",
}

_PICTURES = (".png", ".jpg", ".jpeg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The source's flags."""
    parser.add_argument("folder", metavar="FOLDER", help="holds the folders benign, malignant, normal, or some of them")
    parser.add_argument("--image-folder", help="where picture names start, FOLDER or a folder above it (FOLDER)")
    add_lang_argument(parser)
    add_split_arguments(parser)


def read(options: argparse.Namespace) -> Reading:
    """Read the folder.

    Raises:
        ValueError: no class folder, two pictures of a class with one name, or an image folder that is not above FOLDER.
    """
    folder = existing_folder(options.folder, "FOLDER").resolve()
    classes = [name for name in CLASSES if (folder / name).is_dir()]
    gone = next((name for name in CLASSES if (folder / name).is_symlink() and not (folder / name).exists()), None)
    if gone is not None:
        raise ValueError(f"FOLDER {options.folder}: {gone} is a link to a folder that is gone. Mend or remove it.")
    if not classes:
        raise ValueError(f"FOLDER {options.folder}: has none of the folders {', '.join(CLASSES)}.")
    root = image_folder(options.image_folder, folder).resolve()
    if not folder.is_relative_to(root):
        raise ValueError(f"--image-folder {options.image_folder}: must be FOLDER or a folder above it.")
    items: list[Item] = []
    reading = Reading({"": items}, root, read=0, used=0)
    seen: dict[str, Path] = {}
    for name in classes:
        # Not `is_file`: a link to a picture that is gone is a picture that is missing.
        for path in sorted((path for path in (folder / name).rglob("*") if not path.is_dir()), key=_natural):
            if not is_clean(path.relative_to(root).as_posix()):
                raise ValueError(f"FOLDER {options.folder}: {path.name!r} in {name} is no UTF-8 name. Rename the file.")
            reading.read += 1
            if path.suffix.lower() not in _PICTURES:
                reading.left_out["other_files"] += 1
            elif "_mask" in path.stem:
                reading.left_out["mask_files"] += 1
            else:
                study = f"busi-{name}-{path.relative_to(folder / name).with_suffix('').as_posix()}"
                if study in seen:
                    raise ValueError(
                        f"FOLDER {options.folder}: {seen[study].name} and {path.name} in {name} differ in their ending "
                        "only, their ids would be equal. Rename one of them."
                    )
                seen[study] = path
                items += _items(study, name, path.relative_to(root).as_posix(), wanted_languages(options.lang))
                reading.used += 1
    return reading


def _items(study: str, name: str, picture: str, languages: tuple[str, ...]) -> list[Item]:
    return [
        Item(
            id=f"{study}-{lang}",
            study=study,
            images=(picture,),
            question=QUESTIONS[lang],
            answer=CLASSES[name] if lang == "zh" else name,
            lang=lang,
            answer_type="CLOSED",
            modality="ultrasound",
            content_type=name,
            site="乳腺",
            label=name,
        )
        for lang in languages
    ]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order of names in which 2 stands before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split("([0-9]+)", path.as_posix())]
