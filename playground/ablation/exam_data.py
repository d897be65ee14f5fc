"""What the rows train on and are asked: files of `llava-ultra import`, and their variants."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.whole_file import write_whole
from rows import Row
from steps import read_json, write_json

ASKED = ("findings", "diagnosis", "lesion_seen", "echo", "margin", "texture", "calcification", "micro_seen")
"""Content types of the held-out questions: the whole texts, fine detail, and one attribute that coarse cells show."""

GOLD = {"train": "train_gold.jsonl", "test": "test_gold.jsonl"}
"""Gold files of `llava-ultra import`; they say what each question is about."""

WHOLE = ("findings", "diagnosis")
"""Content types of whole texts."""

FRAMES_ASKED = 2
"""Frames of an exam that a model without a sampler is asked about, each by itself. Our choice: previous works take
every frame with the text as a test sample; two frames drawn from the exam have the same mean at a third of the cost."""


PAIRS = "pairs"
"""Folder, inside that of the exams, of the exams of one frame that stage 1 learns from."""


def stage1_file(data: Path, phantom: Path) -> Path:
    """Stage 1's file: exams of one frame with a caption, and with the findings that the frame shows.

    Our choice: stage 1 learns what words look like, as LLaVA's does from captioned pictures, and has other exams than
    the sampler, so that it has seen of none which frame is valid. With a random frame of several, two of three pictures
    belied their text, and a teacher after 9,600 of them was at .60 where it is at .80 after 6,400 of these. With
    captions alone it was at .36: findings are another way of speaking. With findings alone, short answers were worse.
    """
    target = data / "variants" / "stage1.json"
    if not target.exists():
        write_json(target, [pair for record in read_json(phantom / PAIRS / "stage1.json") for pair in _pairs(record)])
    return target


def _pairs(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    kept = {key: value for key, value in record.items() if key not in ("valid_frames", "findings")}
    kept["image"] = [f"{PAIRS}/{name}" for name in record["image"]]
    asked, caption = record["conversations"]
    yield {**kept, "conversations": [asked, caption]}
    yield {**kept, "id": f"{record['id']}-findings", "conversations": [asked, {**caption, "value": record["findings"]}]}


def training_file(data: Path, row: Row) -> Path:
    """The stage 2 file of a row, in the row's version of the questions; made where it is missing.

    Args:
        data: holds the output of `llava-ultra import exams --site-cue both`.
    """
    target = data / "variants" / f"{row.questions}_{row.data}_train.json"
    if not target.exists():
        kinds = {line["question_id"]: line["content_type"] for line in read_lines(data / row.questions / GOLD["train"])}
        exams = chats(read_json(data / row.questions / "train.json"), kinds)
        write_json(target, {"exam": list, "frame": by_frame, "swapped": swap_findings}[row.data](exams))
    return target


def chats(records: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """An exam's samples: its findings, its diagnosis, and its short questions together, as a chat of many turns.

    As LLaVA's instructions have it: as many answers for the cost of two samples. Our choice: findings and diagnosis
    stay apart from the chat, where they would give the short answers away.

    Args:
        records: a question each.
        kinds: content type of each record's id.
    """
    exams: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        exams[record["exam_id"]].append(record)
    made: list[dict[str, Any]] = []
    for exam, own in exams.items():
        made += [dict(record) for record in own if kinds[record["id"]] in WHOLE]
        short = [record for record in own if kinds[record["id"]] not in WHOLE]
        turns = [
            dict(turn) for record in random.Random(exam).sample(short, len(short)) for turn in record["conversations"]
        ]
        for turn in turns[1:]:  # the pictures stand in front of the first question only
            turn["value"] = turn["value"].replace("<image>\n", "")
        made.append({**short[0], "id": f"{exam}-chat", "conversations": turns})
    return made


def by_frame(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every frame is a sample with the exam's text, as previous works have it."""
    samples = []
    for record in records:
        turns = record["conversations"]
        question = turns[0]["value"].replace("<image>\n", "").replace("<image>", "")
        first = {**turns[0], "value": f"<image>\n{question}"}
        for place, name in enumerate(record["image"]):
            sample = {key: value for key, value in record.items() if key not in ("valid_frames", "findings")}
            sample |= {"id": f"{record['id']}-f{place}", "image": name, "conversations": [first, *turns[1:]]}
            samples.append(sample)
    return samples


def swap_findings(records: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """The teacher reads another exam's findings; questions and answers stay. The control of every taught sampler."""
    findings = {record["exam_id"]: record["findings"] for record in records}
    exams = sorted(findings)
    random.Random(seed).shuffle(exams)
    other = {exam: findings[exams[place - 1]] for place, exam in enumerate(exams)}
    return [{**record, "findings": other[record["exam_id"]]} for record in records]


def gold_file(data: Path, row: Row) -> Path:
    """The held-out questions of the kinds `ASKED` with their answers; for a model without a sampler, of single frames.

    A gold file is a question file too, and `valid_frames` in it is what the oracle row picks by.
    """
    target = data / "variants" / f"{row.questions}_{row.data}_gold.jsonl"
    if not target.exists():
        lines = [line for line in read_lines(data / row.questions / GOLD["test"]) if line["content_type"] in ASKED]
        _write_lines(target, [one for line in lines for one in _single_frames(line)] if row.data == "frame" else lines)
    return target


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _single_frames(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same frames for every question of an exam."""
    count = len(record["image"])
    places = sorted(random.Random("|".join(record["image"])).sample(range(count), min(FRAMES_ASKED, count)))
    lines = []
    for place in places:
        line = {**record, "question_id": f"{record['question_id']}-f{place}", "image": record["image"][place]}
        if record.get("valid_frames") is not None:
            line["valid_frames"] = [0] if place in record["valid_frames"] else []
        lines.append(line)
    return lines
