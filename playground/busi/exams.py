"""Exams of real pictures: each lesion picture of BUSI among k - 1 normal ones, with a text of its class.

The pictures' own content decides on which side of the split they stand, so that none is both learnt from and asked
about; a picture and its twins, of which BUSI has many, stand on one side. Beside these exams stand normal ones, k
normal pictures with a normal text: only then does it change something when the findings of two exams are swapped,
since the texts of two lesions both speak of a lesion.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from busi import texts
from llava_ultra_ext.data.duplicates import look_at
from llava_ultra_ext.data.exam import IMAGE_TOKEN
from llava_ultra_ext.data.sources import busi as source
from llava_ultra_ext.data.sources.phantom import questions
from llava_ultra_ext.data.splits import make_split
from llava_ultra_ext.data.whole_file import write_whole

SPLITS = ("train", "test")
TWIN = 0.95
THIS = f"该{texts.SITE}超声图像"


@dataclass(frozen=True)
class Picture:
    """A picture of BUSI: its name below the folder, its class, and the hash of its pixels."""

    name: str
    label: str
    content: str


@dataclass(frozen=True)
class Exam:
    """A group of pictures; `valid` are the 0-based places of those that the text of class `label` is about."""

    id: str
    label: str
    pictures: tuple[Picture, ...]
    valid: tuple[int, ...]


def read_pictures(folder: Path) -> list[Picture]:
    """The set's pictures, each content once; masks are not among them (`sources.busi`).

    Raises:
        ValueError: the folder is not BUSI's, or a picture cannot be read.
    """
    reading = source.read(argparse.Namespace(folder=str(folder), image_folder=None, lang="zh"))
    items = [item for found in reading.versions.values() for item in found]
    looked = look_at(folder, [item.images[0] for item in items])
    by_content: dict[str, list[Picture]] = defaultdict(list)
    for item in items:
        name, seen = item.images[0], looked[item.images[0]]
        if seen.fault is not None:
            raise ValueError(f"--busi {folder}: {name} {seen.fault.message}")
        by_content[seen.content].append(Picture(name, item.label, seen.content))
    # BUSI is known for equal pictures; one that stands in two classes has no truth.
    return [same[0] for same in by_content.values() if len({picture.label for picture in same}) == 1]


def twins(folder: Path, pictures: Sequence[Picture]) -> list[tuple[Picture, Picture]]:
    """Pairs that show the same scene: saved again, cut a little otherwise, with calipers or without.

    Our choice: 32 x 32 thumbnails correlate by `TWIN` or more. Of BUSI's pairs that do, all that were looked at were
    the same scene, 0.92 to 0.95 nearly all, below 0.92 few.
    """
    small = []
    for picture in pictures:
        grey = Image.open(folder / picture.name).convert("L").resize((32, 32), Image.Resampling.BOX)
        level = np.asarray(grey, np.float64).ravel()
        small.append((level - level.mean()) / max(1e-9, np.linalg.norm(level - level.mean())))
    alike = np.triu(np.stack(small) @ np.stack(small).T, 1) >= TWIN
    return [(pictures[one], pictures[other]) for one, other in np.argwhere(alike)]


def split(
    pictures: Sequence[Picture], pairs: Sequence[tuple[Picture, Picture]], held_out: float, seed: int
) -> dict[str, list[Picture]]:
    """Training and held-out pictures: a hash of the content decides, of the smallest one among twins.

    Args:
        pairs: of `twins`.
        held_out: share of the held-out ones, 0 to 1.
    """
    keys = {picture.content: [picture.content] for picture in pictures}
    for one, other in pairs:
        keys[one.content].append(other.content)
    sides = make_split(keys, (1 - held_out, 0.0, held_out), seed)
    return {name: [picture for picture in pictures if sides[picture.content] == name] for name in SPLITS}


def make_exams(pictures: Sequence[Picture], k: int, seed: int) -> list[Exam]:
    """Each lesion picture once, at a random place among k - 1 different normal ones; and as many normal exams.

    Args:
        pictures: of one side of the split.

    Raises:
        ValueError: k is below 2, or there are fewer than k normal pictures, or no lesion.
    """
    normal = [picture for picture in pictures if picture.label == "normal"]
    lesions = [picture for picture in pictures if picture.label != "normal"]
    if k < 2 or len(normal) < k or not lesions:
        raise ValueError(
            f"--k {k} with {len(lesions)} lesion and {len(normal)} normal pictures on a side of the split: an exam has "
            "2 pictures or more, one of a lesion, and as many normal ones must be there. Give a smaller --k, or "
            "another --held-out."
        )
    exams = []
    places = [number % k for number in range(len(lesions))]  # each as often, so that none is a good guess
    random.Random(f"{seed}/places").shuffle(places)
    for number, (lesion, at) in enumerate(zip(lesions, places, strict=True)):
        choice = random.Random(f"{seed}/{lesion.content}")
        group = choice.sample(normal, k - 1)
        group.insert(at, lesion)
        exams.append(Exam(f"BUSI-{_stem(lesion)}", lesion.label, tuple(group), (at,)))
        exams.append(Exam(f"BUSI-none-{number:03d}", "normal", tuple(choice.sample(normal, k)), tuple(range(k))))
    return exams


def records(exam: Exam, seed: int, asked: Sequence[str]) -> list[dict[str, Any]]:
    """The exam as records of a manifest for `llava-ultra import exams`.

    Args:
        asked: of findings, diagnosis and lesion_seen.
    """
    choice = random.Random(f"{seed}/{exam.id}")
    findings = texts.findings(exam.label, choice)
    wording, yes, no = choice.choice(questions.CLOSED["lesion_seen"])
    seen = no if exam.label == "normal" else yes
    turns = {
        "findings": (choice.choice(questions.OPEN["findings"]), findings, "OPEN"),
        "diagnosis": (choice.choice(questions.OPEN["diagnosis"]), texts.diagnosis(exam.label, choice), "OPEN"),
        "lesion_seen": (wording, seen, "CLOSED"),
    }
    made = []
    for key in asked:
        question, answer, answer_type = turns[key]
        record = _record(f"{exam.id}-{key}", [picture.name for picture in exam.pictures], question, answer)
        record |= {"exam_id": exam.id, "findings": findings, "valid_frames": list(exam.valid)}
        made.append({**record, "content_type": key, "answer_type": answer_type, "lang": "zh"})
    return made


def single_pictures(pictures: Sequence[Picture], seed: int) -> list[dict[str, Any]]:
    """Stage 1's samples: a picture and a text of its own class.

    Our choice: normal pictures, of which there are few, as often as lesions, in other words each time; else the text of
    a lesion would be the likely one for whatever picture.
    """
    lesions = [picture for picture in pictures if picture.label != "normal"]
    normal = [picture for picture in pictures if picture.label == "normal"]
    shown = lesions + [normal[number % len(normal)] for number in range(len(lesions))]
    made = []
    for number, picture in enumerate(shown):
        choice = random.Random(f"{seed}/{number}/{picture.content}")
        question, answer = choice.choice(questions.OPEN["findings"]), texts.findings(picture.label, choice)
        made.append(_record(f"{_stem(picture)}-{number}", [picture.name], question, answer))
    return made


def write(
    exams: Mapping[str, Sequence[Exam]], learnt_from: Sequence[Picture], seed: int, busi: Path, out: Path
) -> None:
    """Writes stage1.json, stage2.json and held_out.json, as `llava-ultra phantom` does, beside links to the pictures.

    Of held-out exams one question is asked: which picture is chosen does not depend on it.

    Args:
        exams: of each side of the split.
        learnt_from: the training pictures.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in source.CLASSES:
        if not (out / name).is_symlink():
            (out / name).symlink_to((busi / name).resolve(), target_is_directory=True)
    learnt = [one for exam in exams["train"] for one in records(exam, seed, ("findings", "diagnosis", "lesion_seen"))]
    asked = [{**one, "split": "test"} for exam in exams["test"] for one in records(exam, seed, ("lesion_seen",))]
    lists = {"stage1": single_pictures(learnt_from, seed), "stage2": learnt, "held_out": asked}
    for name, made in lists.items():
        write_whole(out / f"{name}.json", json.dumps(made, ensure_ascii=False, indent=1) + "\n")


def _stem(picture: Picture) -> str:
    return Path(picture.name).with_suffix("").as_posix().replace("/", "-")


def _record(key: str, images: Sequence[str], question: str, answer: str) -> dict[str, Any]:
    human = f"{IMAGE_TOKEN}\n" * len(images) + question.format(this=THIS)
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]
    return {"id": key, "image": list(images), "site": texts.SITE, "modality": "ultrasound", "conversations": turns}
