"""What a quick-start run came to: `result.json` for the page, a table for the terminal, and whether it went well."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from report import choice_record, same_answer

TABLE_EXAMS = 8
LENGTH_QUESTION = "原始文件共有多少帧？"  # the pictures do not show it, see demo_texts.py


def stage_entry(name: str, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A stage of `result.json` from a trainer's log: the language model's loss, without L_adr, and alpha at the end.

    Before and after are means over the first and the last tenth of the steps: single steps are a few exams each.

    Raises:
        ValueError: The log holds no loss.
    """
    steps = [entry for entry in history if "lm_loss" in entry]
    if not steps:
        raise ValueError(f"{name}: the trainer logged no loss.")
    loss = [float(entry["lm_loss"]) for entry in steps]
    tenth = max(1, len(loss) // 10)
    return {
        "name": name,
        "loss": loss,
        "loss_before": sum(loss[:tenth]) / tenth,
        "loss_after": sum(loss[-tenth:]) / tenth,
        "alpha": steps[-1].get("alpha"),
    }


def exam_entry(gold: Mapping[str, Any], message: Mapping[str, Any], cine: bool) -> dict[str, Any]:
    """An entry of `result.json`.

    Args:
        gold: A line of gold.jsonl.
        message: The last message of the worker's stream.
        cine: Whether the exam's text describes a cine.
    """
    chosen, scores = message.get("chosen_frames") or [[]], message.get("frame_scores") or [[]]
    single = len(gold["image"]) == 1
    return {
        "exam_id": gold["exam_id"],
        "images": gold["image"],
        "scores": [None] if single else list(scores[0]) or [None] * len(gold["image"]),
        "chosen": list(chosen[0]),
        "valid": gold["valid_frames"],
        "question": gold["text"],
        "answer": message["text"],
        "truth": gold["answer"],
        "split": gold["split"],
        "cine": cine,
        "error_code": message["error_code"],
    }


def most_frequent_answers(samples: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Question -> the answer that the training samples give most often: what one may say without looking."""
    counts: dict[str, Counter[str]] = {}
    for sample in samples:
        turns = [turn["value"].replace("<image>\n", "") for turn in sample["conversations"]]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            counts.setdefault(question, Counter())[answer] += 1
    return {question: count.most_common(1)[0][0] for question, count in counts.items()}


def right_answers(exams: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Split -> answers that match the truth."""
    return dict(Counter(entry["split"] for entry in exams if same_answer(entry["answer"], entry["truth"])))


def blind_answers(exams: Sequence[Mapping[str, Any]], frequent: Mapping[str, str]) -> dict[str, int]:
    """Split -> answers that would match with the most frequent answer to every question, without a picture."""
    return right_answers([{**entry, "answer": frequent.get(entry["question"], "")} for entry in exams])


def problems(result: Mapping[str, Any]) -> list[str]:
    """Why the run may not be called OK; empty when it may."""
    found = []
    for stage in result["stages"]:
        before, after = stage["loss_before"], stage["loss_after"]
        if not (math.isfinite(after) and after < before):
            found.append(f"the loss of {stage['name']} did not fall ({before:.3f} -> {after:.3f})")
    if not result["exams"]:
        found.append("no question was asked")
    for entry in result["exams"]:
        asked = f"{entry['exam_id']}, {entry['question']}"
        if entry["error_code"]:
            found.append(f"no answer for {asked} {' '.join(entry['answer'].split())[:200]}")
        elif not entry["chosen"]:
            found.append(f"the answer does not say which frame was chosen: {asked}")
    return found


def table(result: Mapping[str, Any]) -> str:
    """The run as text for a terminal; `result` as report.py describes it, with `blind`."""
    lines = [_row(("", 32), ("loss before", 13), ("after", 9), ("alpha", 9))]
    for stage in result["stages"]:
        alpha = "" if stage["alpha"] is None else f"{stage['alpha']:.3f}"
        cells = (f"{stage['loss_before']:.3f}", 13), (f"{stage['loss_after']:.3f}", 9), (alpha, 9)
        lines.append(_row((stage["name"], 32), *cells))
    lines += ["", _row(("exam, question", 46), ("chosen", 9), ("scores, [valid frames]", 46), ("answer", 0))]
    for entry in shown(result["exams"]):
        chosen = ",".join(str(place + 1) for place in entry["chosen"])
        where = f"{chosen} of {len(entry['images'])}"
        right = same_answer(entry["answer"], entry["truth"])
        verdict = entry["answer"] if right else f"{entry['answer']}  (truth: {entry['truth']})"
        first = f"{entry['exam_id']} {entry['question']}"
        lines.append(_row((first, 46), (where, 9), (_scores(entry), 46), (verdict, 0)))
    return "\n".join([*lines, "", *_counts(result["exams"], result["blind"])])


def shown(exams: Sequence[Mapping[str, Any]], limit: int = TABLE_EXAMS) -> list[Mapping[str, Any]]:
    """The first question of the first exams: mixed ones, then cines, each held out, then ones of training."""
    first = {entry["exam_id"]: entry for entry in reversed(exams)}
    entries = [entry for entry in exams if first[entry["exam_id"]] is entry]
    held_out = [entry for entry in entries if entry["split"] == "test"]
    mixed = [entry for entry in held_out if len(entry["valid"]) < len(entry["images"])]
    rest = [entry for entry in held_out if entry not in mixed]
    seen = [entry for entry in entries if entry["split"] != "test"]
    return [*mixed[: limit - 3], *rest[:2], *seen[:1]]


def _counts(exams: Sequence[Mapping[str, Any]], blind: Mapping[str, int]) -> list[str]:
    lines, right = [], right_answers(exams)
    for split, label in (("test", "held-out exams: answers right"), ("train", "exams seen in training: answers right")):
        asked = sum(entry["split"] == split for entry in exams)
        note = f"(the most frequent answer, blind: {blind.get(split, 0)})"
        lines += [f"{label:46}{right.get(split, 0)} of {asked}  {note}"] * (asked > 0)
    lines.append("  (held out: no such exam and none of its cine frames were trained on; the few stills are the same)")
    unseen = [entry for entry in exams if entry["split"] == "test" and entry["question"] == LENGTH_QUESTION]
    if unseen:
        guessed = right_answers(unseen).get("test", 0)
        lines.append(f"{'held-out file lengths, which no picture shows':46}{guessed} of {len(unseen)}")
    return lines + _choices(list({(entry["exam_id"], tuple(entry["chosen"])): entry for entry in exams}.values()))


def _choices(exams: Sequence[Mapping[str, Any]]) -> list[str]:
    """Valid choices, also apart: a coloured frame stands out, a cine's frame among grey stills does not."""
    lines = []
    for label, cine in (
        ("mixed exams: a valid frame was chosen", (True, False)),
        ("  described: a colour still", (False,)),
        ("  described: a grey cine", (True,)),
    ):
        hits, total, chance = choice_record([entry for entry in exams if entry["cine"] in cine])
        if total:
            lines.append(f"{label:46}{hits} of {total}  (by chance {chance * total:.1f})")
    return lines


def _scores(entry: Mapping[str, Any]) -> str:
    cells = []
    for place, score in enumerate(entry["scores"]):
        text = "-" if score is None else f"{score:.2f}"
        cells.append(f"[{text}]" if place in entry["valid"] else text)
    return " ".join(cells)


def _row(*cells: tuple[str, int]) -> str:
    """Cells of (text, columns), left-aligned; a Chinese character takes two columns of a terminal."""
    padded = []
    for text, columns in cells:
        wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
        padded.append(text + " " * max(0, columns - len(text) - wide))
    return " ".join(padded).rstrip()
