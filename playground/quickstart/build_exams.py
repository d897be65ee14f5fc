"""Quick-start exams from the real ultrasound files that `pydicom` and `pydicom-data` ship.

    python playground/quickstart/build_exams.py --out DIR

Three kinds of exams: a still (one frame), a window of a cine (2 to 8 frames, all valid), and a mixed exam, whose text
describes one source only. Its other frames come from sources of a lower rank (colour Doppler before cine before grey
still), so which frames are valid is known by construction and can be learnt from the pictures.

Held out: cine windows and mixed exams whose cine frames are the last quarter of the longest cine; training never sees
those frames. Stills are too few to be held out. The sources are different patients, so a mixed exam is no real exam.

Written to DIR: `frames/*.png`, `stage1.json`, `stage2.json` (training), `questions.jsonl`, `gold.jsonl` (all held-out
exams and a few of training), `held_out.json` (a manifest with every question of every held-out exam, for `llava-ultra
import exams`), `sources.json` (what came from which file; what was skipped and why).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import demo_texts
from dicom_frames import Pixels, Source, collect_sources, local_files

REQUESTS = ("请描述这组超声图像。", "请写出该检查的超声所见。", "请根据图像描述超声所见。")
NOTE = (
    "The sources are test files of different patients; mixed exams join them only so that the valid frames are known. "
    "Texts are derived from pixels and headers and are no medical findings."
)


@dataclass(frozen=True)
class Frame:
    """Frame `index` (from 0) of `source`."""

    source: Source
    index: int

    @property
    def path(self) -> str:
        """Where the frame is written, relative to the output folder."""
        return f"frames/{Path(self.source.name).stem}_{self.index:03d}.png"


@dataclass
class Exam:
    """Frames in order, and which of them the text is about.

    Attributes:
        kind: still, cine or mixed.
        frames: All frames.
        valid: Positions in `frames` of those that the text describes; all are of one source.
        split: train or test.
        exam_id: Synthetic, given when all exams are known.
    """

    kind: str
    frames: list[Frame]
    valid: list[int]
    split: str
    exam_id: str = field(default="")

    @property
    def source(self) -> Source:
        """The source that the text describes."""
        return self.frames[self.valid[0]].source

    def valid_pixels(self) -> Pixels:
        """(len(valid), H, W, 3) RGB."""
        return np.stack([self.source.frames[self.frames[position].index] for position in self.valid])


def rank(source: Source) -> int:
    """0 colour Doppler, 1 grey cine, 2 grey still: a mixed exam's text describes the source of the lowest rank."""
    if demo_texts.facts_of(source.frames[:1]).colour:
        return 0
    return 1 if source.is_cine else 2


def plan_exams(sources: Sequence[Source], cine_exams: int, mixed_exams: int, seed: int) -> list[Exam]:
    """Chooses the frames of every exam. A quarter of the cine and of the mixed exams is held out.

    Raises:
        ValueError: There is no cine, or no colour Doppler picture among the sources.
    """
    ranks = {source.name: rank(source) for source in sources}
    cines = [source for source in sources if source.is_cine]
    if not cines or 0 not in ranks.values():
        raise ValueError(
            f"The quick start needs a cine and a colour Doppler picture, but found only {sorted(ranks)}. "
            "Next: pip install pydicom pydicom-data pillow pylibjpeg pylibjpeg-libjpeg, then start again."
        )
    longest = max(cines, key=lambda source: len(source.frames))
    generator = np.random.default_rng(seed)
    exams = [Exam("still", [Frame(source, 0)], [0], "train") for source in sources if not source.is_cine]
    for split, share in (("train", 0.75), ("test", 0.25)):
        allowed = _frames_of_split(sources, longest, split)
        for number in range(round(cine_exams * share)):
            source = longest if split == "test" else cines[number % len(cines)]
            exams.append(_cine_exam(allowed[source.name], split, generator))
        exams += [_mixed_exam(allowed, ranks, split, generator) for _ in range(round(mixed_exams * share))]
    order = generator.permutation(len(exams))
    for number, position in enumerate(order, start=1):
        exams[position].exam_id = f"US-DEMO-{number:04d}"
    return sorted(exams, key=lambda exam: exam.exam_id)


def training_sample(exam: Exam, stage: int, generator: np.random.Generator) -> dict[str, Any]:
    """The exam as a training sample: stage 1 asks for the findings, stage 2 asks every question in a random order."""
    source, pixels = exam.source, exam.valid_pixels()
    findings = demo_texts.findings(source, pixels)
    if stage == 1:
        turns = [(REQUESTS[int(generator.integers(len(REQUESTS)))], findings)]
    else:
        asked = demo_texts.questions(source, pixels)
        turns = [asked[position][:2] for position in generator.permutation(len(asked))]
    conversations = [
        {"from": speaker, "value": value}
        for question, answer in turns
        for speaker, value in (("human", question), ("gpt", answer))
    ]
    conversations[0]["value"] = "<image>\n" * len(exam.frames) + conversations[0]["value"]
    return {
        "id": f"{exam.exam_id}-{'findings' if stage == 1 else 'questions'}",
        "exam_id": exam.exam_id,
        "image": [frame.path for frame in exam.frames],
        "modality": "ultrasound",
        "findings": findings,
        "valid_frames": exam.valid,
        "conversations": conversations,
    }


def gold_lines(exams: Sequence[Exam], per_exam: int, seen: int) -> list[dict[str, Any]]:
    """`per_exam` questions of every held-out exam, in turn so that each question comes up, and one of `seen` others."""
    held_out = [exam for exam in exams if exam.split == "test"]
    known = [exam for exam in exams if exam.split == "train"]
    lines = []
    for number, exam in enumerate(held_out + known[:seen]):
        asked = demo_texts.questions(exam.source, exam.valid_pixels())
        for offset in range(per_exam if exam.split == "test" else 1):
            position = (number * per_exam + offset) % len(asked)
            text, answer, answer_type = asked[position]
            lines.append(
                {
                    "question_id": f"{exam.exam_id}-q{position + 1}",
                    "exam_id": exam.exam_id,
                    "image": [frame.path for frame in exam.frames],
                    "text": text,
                    "answer": answer,
                    "lang": "zh",
                    "answer_type": answer_type,
                    "modality": "ultrasound",
                    "valid_frames": exam.valid,
                    "split": exam.split,
                }
            )
    return lines


def held_out_records(exams: Sequence[Exam]) -> list[dict[str, Any]]:
    """A manifest of the held-out exams, a record a question."""
    records = []
    for exam in exams:
        pixels = exam.valid_pixels()
        findings = demo_texts.findings(exam.source, pixels)
        for position, (text, answer, answer_type) in enumerate(demo_texts.questions(exam.source, pixels), start=1):
            asked = {"from": "human", "value": "<image>\n" * len(exam.frames) + text}
            records.append(
                {
                    "id": f"{exam.exam_id}-{position}",
                    "exam_id": exam.exam_id,
                    "image": [frame.path for frame in exam.frames],
                    "modality": "ultrasound",
                    "findings": findings,
                    "valid_frames": exam.valid,
                    "split": "test",
                    "content_type": exam.kind,
                    "answer_type": answer_type,
                    "conversations": [asked, {"from": "gpt", "value": answer}],
                }
            )
    return records


def build(
    out: Path, cine_exams: int = 32, mixed_exams: int = 48, per_exam: int = 2, seen: int = 6, seed: int = 0
) -> dict[str, Any]:
    """Writes everything under `out` and returns the content of `sources.json`.

    Raises:
        ValueError: The installed files hold no cine or no colour Doppler picture.
    """
    sources, skipped, others = collect_sources(local_files())
    exams = plan_exams(sources, cine_exams, mixed_exams, seed)
    (out / "frames").mkdir(parents=True, exist_ok=True)
    for frame in {frame.path: frame for exam in exams for frame in exam.frames}.values():
        Image.fromarray(frame.source.frames[frame.index]).save(out / frame.path, compress_level=1)
    train = [exam for exam in exams if exam.split == "train"]
    for stage in (1, 2):
        generator = np.random.default_rng((seed, stage))
        samples = [training_sample(exam, stage, generator) for exam in train]
        _write(out / f"stage{stage}.json", json.dumps(samples, ensure_ascii=False, indent=1))
    held_out = held_out_records([exam for exam in exams if exam.split == "test"])
    _write(out / "held_out.json", json.dumps(held_out, ensure_ascii=False, indent=1))
    gold = gold_lines(exams, per_exam, seen)
    asked = [{key: line[key] for key in ("question_id", "exam_id", "image", "text")} for line in gold]
    for name, lines in (("questions.jsonl", asked), ("gold.jsonl", gold)):
        _write(out / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    summary = _summary(sources, skipped, others, exams)
    _write(out / "sources.json", json.dumps(summary, ensure_ascii=False, indent=1))
    return summary


def _frames_of_split(sources: Sequence[Source], longest: Source, split: str) -> dict[str, list[Frame]]:
    """Per source name the frames that a split may show. Only the longest cine's last quarter is new in `test`."""
    allowed = {}
    for source in sources:
        frames = [Frame(source, index) for index in range(len(source.frames))]
        border = len(frames) * 3 // 4
        if source is longest:
            frames = frames[:border] if split == "train" else frames[border:]
        elif source.is_cine and split == "test":
            frames = []
        allowed[source.name] = frames
    return allowed


def _cine_exam(frames: list[Frame], split: str, generator: np.random.Generator) -> Exam:
    """2 to 8 frames, each one to three frames after the one before (fewer and closer in a short cine)."""
    count = int(generator.integers(2, min(8, len(frames)) + 1))
    step = int(generator.integers(1, min(3, (len(frames) - 1) // (count - 1)) + 1))
    start = int(generator.integers(len(frames) - (count - 1) * step))
    return Exam("cine", frames[start::step][:count], list(range(count)), split)


def _mixed_exam(
    allowed: dict[str, list[Frame]], ranks: dict[str, int], split: str, generator: np.random.Generator
) -> Exam:
    """1 or 2 valid frames of one source, 2 to 5 frames of lower-ranked sources, at random places."""
    names = [name for name, frames in allowed.items() if frames and ranks[name] < max(ranks.values())]
    # Colour first, in two of three: there one frame decides the answer, which is what a sampler is for.
    chosen_rank = 0 if generator.random() < 2 / 3 else min(1, max(ranks.values()) - 1)
    name = str(generator.choice([name for name in names if ranks[name] == chosen_rank]))
    pool = [frame for other, frames in allowed.items() if ranks[other] > ranks[name] for frame in frames]
    valid = _pick(allowed[name], int(generator.integers(1, 3)), generator)
    others = _pick(pool, int(generator.integers(2, 6)), generator)
    frames = valid + others
    order = [int(position) for position in generator.permutation(len(frames))]
    return Exam("mixed", [frames[p] for p in order], [n for n, p in enumerate(order) if p < len(valid)], split)


def _pick(frames: list[Frame], count: int, generator: np.random.Generator) -> list[Frame]:
    """Up to `count` different frames; sources first, so that a long cine does not drown the stills."""
    by_source: dict[str, list[Frame]] = {}
    for frame in frames:
        by_source.setdefault(frame.source.name, []).append(frame)
    picked: list[Frame] = []
    while len(picked) < count and by_source:
        name = str(generator.choice(list(by_source)))
        picked.append(by_source[name].pop(int(generator.integers(len(by_source[name])))))
        if not by_source[name]:
            del by_source[name]
    return picked


def _summary(
    sources: Sequence[Source], skipped: list[dict[str, str]], others: int, exams: Sequence[Exam]
) -> dict[str, Any]:
    used = [
        {
            "file": source.name,
            "package": source.package,
            "frames": len(source.frames),
            "size": [source.frames.shape[2], source.frames.shape[1]],
            "photometric": source.photometric,
            "exams": {
                kind: sum(e.kind == kind and e.source is source for e in exams) for kind in ("still", "cine", "mixed")
            },
        }
        for source in sources
    ]
    listed = [
        {"exam_id": exam.exam_id, "kind": exam.kind, "split": exam.split, "source": exam.source.name} for exam in exams
    ]
    return {"note": NOTE, "used": used, "skipped": skipped, "other_modalities": others, "exams": listed}


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: builds the exams and prints what came from where."""
    parser = argparse.ArgumentParser(description="Build the quick start's exams from pydicom's real ultrasound files.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--cine-exams", type=int, default=32, help="number of cine windows, a quarter held out")
    parser.add_argument("--mixed-exams", type=int, default=48, help="number of mixed exams, a quarter held out")
    parser.add_argument("--questions-per-exam", type=int, default=2, help="questions about each held-out exam")
    parser.add_argument("--seen-exams", type=int, default=6, help="training exams that are asked one question each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    summary = build(args.out, args.cine_exams, args.mixed_exams, args.questions_per_exam, args.seen_exams, args.seed)
    for source in summary["used"]:
        print(f"used     {source['file']:34} {source['frames']:4} frames  exams {source['exams']}")
    for entry in summary["skipped"]:
        print(f"skipped  {entry['file']:34} {entry['reason']}")
    count = {split: sum(exam["split"] == split for exam in summary["exams"]) for split in ("train", "test")}
    print(f"exams    {count['train']} for training, {count['test']} held out  ->  {args.out}")


if __name__ == "__main__":
    main()
