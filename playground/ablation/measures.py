"""One trained row's figures from its answers file, the gold file and `llava-ultra score --json`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from exam_data import read_lines
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings
from llava_ultra_ext.eval.closed import same_answer
from steps import read_json

FINE = ("margin", "texture", "calcification")
"""Content types that only fine detail answers."""
LESION_QUESTION = "lesion_seen"
"""Content type of 是否见病灶: on normal exams its accuracy is the specificity."""
TOKENIZER = "char"
LEAST_VISIBLE = PhantomSettings().least_visible
"""From this share of a lesion on a frame shows it."""


def figures(
    answers: Path, gold: Path, scores: Path, truth: Path, exams: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Figures in 0 to 100, and counts.

    Args:
        answers: of `llava-ultra answer`.
        gold: what was asked.
        scores: of `llava-ultra score --json`.
        truth: `truth.jsonl` of the phantom exams.
        exams: of `exam_choices`.

    Returns:
        frame_choice: share of lesion exams of several frames whose chosen frames hold a valid one (of models without
            a sampler: of the frames that were asked about); chance: of a random frame. f1, em, bleu: open answers,
            strict. closed: accuracy. fine: exact match of the open questions about `FINE`. findings_f1, diagnosis_em.
            specificity: normal exams said to be normal. kept_frames: frames an answer reads. lesions_shown: of exams
            with several lesions, the share of lesions that the kept frames show.
    """
    model = read_json(scores)["models"][0]
    strict = model["metrics"]["strict"][TOKENIZER]
    by_content = model["subsets"]["content_type"]
    found = {key: strict[key] for key in ("em", "f1", "bleu")}
    found["closed"] = model["closed_accuracy"]
    found["frame_choice"] = 100 * fmean(exam["hit"] for exam in exams)
    found["chance"] = 100 * fmean(exam["valid"] / exam["frames"] for exam in exams)
    found["findings_f1"] = _of(by_content, "findings", "f1")
    found["diagnosis_em"] = _of(by_content, "diagnosis", "em")
    found["fine"] = fmean(_of(by_content, name, "em") for name in FINE)
    found["specificity"] = specificity(answers, gold)
    kept = [sum(map(len, line["metadata"].get("frames") or [[0]])) for line in read_lines(answers)]
    found["kept_frames"] = fmean(kept)
    shown = lesions_shown(answers, gold, truth)
    if shown:
        found["lesions_shown"] = 100 * fmean(shown)
    return {name: round(float(value), 4) for name, value in found.items()}


def exam_choices(answers: Path, gold: Path) -> list[dict[str, Any]]:
    """For each lesion exam of several frames: how many frames, how many valid ones, and how often a valid one was kept.

    Frames of one exam that were asked about apart count as picks of that exam.
    """
    chosen = {line["question_id"]: line["metadata"].get("frames") for line in read_lines(answers)}
    picks: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    lines = read_lines(gold)
    normal = normal_exams(lines)
    for line in lines:
        valid, images = line["valid_frames"], line["image"]
        if line["exam_id"] in normal:
            continue
        frames = chosen[line["question_id"]] or [[0]]
        count = len(images) if isinstance(images, list) else 1
        picks[line["exam_id"]].append((count, len(valid), float(bool(set(frames[0]) & set(valid)))))
    return [
        {"exam_id": exam, "frames": found[0][0], "valid": found[0][1], "hit": fmean(hit for _, _, hit in found)}
        for exam, found in picks.items()
    ]


def lesions_shown(answers: Path, gold: Path, truth: Path) -> list[float]:
    """For each question about an exam of several lesions, the share of them that the kept frames show."""
    exams = {line["exam_id"]: line for line in read_lines(truth)}
    chosen = {line["question_id"]: line["metadata"].get("frames") for line in read_lines(answers)}
    shares = []
    for line in read_lines(gold):
        lesions = exams[line["exam_id"]]["lesions"]
        if len(lesions) < 2:
            continue
        images = [line["image"]] if isinstance(line["image"], str) else line["image"]
        kept = [int(Path(images[place]).stem) for place in (chosen[line["question_id"]] or [[0]])[0]]
        seen = [exams[line["exam_id"]]["frames"][frame]["visibility"] for frame in kept]
        shares.append(fmean(max(frame[lesion] for frame in seen) >= LEAST_VISIBLE for lesion in range(len(lesions))))
    return shares


def specificity(answers: Path, gold: Path) -> float:
    """Share in 0 to 100 of normal exams whose question for a lesion was answered with no."""
    said = {line["question_id"]: line["text"] for line in read_lines(answers)}
    lines = read_lines(gold)
    normal = normal_exams(lines)
    asked = [line for line in lines if line["content_type"] == LESION_QUESTION and line["exam_id"] in normal]
    return 100 * fmean(same_answer(said[line["question_id"]], line["answer"]) for line in asked)


def normal_exams(gold: Sequence[Mapping[str, Any]]) -> set[str]:
    """Exams without a lesion."""
    asked = (line for line in gold if line["content_type"] == LESION_QUESTION)
    return {line["exam_id"] for line in asked if same_answer(line["answer"], "否")}


def _of(by_content: Mapping[str, Any], name: str, key: str) -> float:
    return float(by_content[name]["metrics"]["strict"][TOKENIZER][key])


def mean_by(exams: Sequence[Mapping[str, Any]], key: str, edges: Sequence[float]) -> list[dict[str, float]]:
    """Frame choice in bins of "frames" or "share" (valid frames of all)."""
    rows = []
    for low, high in pairwise(edges):
        inside = [exam for exam in exams if low <= _value(exam, key) < high]
        if inside:
            rows.append(
                {
                    "low": low,
                    "high": high,
                    "exams": len(inside),
                    "frame_choice": 100 * fmean(exam["hit"] for exam in inside),
                    "chance": 100 * fmean(exam["valid"] / exam["frames"] for exam in inside),
                }
            )
    return rows


def _value(exam: Mapping[str, Any], key: str) -> float:
    return exam["valid"] / exam["frames"] if key == "share" else float(exam[key])
