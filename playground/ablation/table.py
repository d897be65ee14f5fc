"""Means and intervals over seeds, and the table in the layout of the paper's Table 3 with what it costs beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from rows import ALL, ROWS

COLUMNS = {
    "frame_choice": "frame",
    "f1": "F1",
    "bleu": "BLEU",
    "em": "EM",
    "closed": "closed",
    "findings_f1": "findings F1",
    "diagnosis_em": "diagnosis",
    "fine": "fine detail",
    "specificity": "specificity",
    "frame_tokens": "frame tokens into the LLM",
    "train_seconds_a_sample": "train s/sample",
    "train_peak_mb": "peak MB",
}
"""Figure -> head of its column. Per cent, except the last three."""

NOTES = (
    "frame: lesion exams whose chosen frame shows the lesion. specificity: normal exams said to be normal. "
    "fine detail: margin, texture and calcification, exact. F1, BLEU, EM: open answers, characters, `strict`. "
    "Means over seeds, 95 % intervals of Student's t over seeds in brackets."
)

_PLAIN = ("name", "seed", "exams", "log")


def summarise(found: Mapping[str, Sequence[Mapping[str, Any]]], frame_tokens: int) -> list[dict[str, Any]]:
    """A row for each name: `seeds`, and each figure as {mean, low, high}; low and high are None for a single seed.

    Args:
        found: name -> results of `Trainings.row`.
        frame_tokens: of one frame.
    """
    rows = []
    for name, results in found.items():
        row: dict[str, Any] = {"name": name, "title": ALL[name].title, "group": ALL[name].group, "seeds": len(results)}
        for key in (key for key in results[0] if key not in _PLAIN and all(key in result for result in results)):
            row[key] = interval([float(result[key]) for result in results])
        row["frame_tokens"] = interval([frame_tokens * result["kept_frames"] for result in results])
        for key in sorted({key for result in results for key in result["log"]}):
            row[f"log_{key}"] = interval([result["log"][key] for result in results if key in result["log"]])
        rows.append(row)
    return rows


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and 95 % interval of Student's t."""
    mean = fmean(values)
    if len(values) < 2:
        return {"mean": round(mean, 4), "low": None, "high": None}
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


def markdown(content: Mapping[str, Any]) -> str:
    """The table, settings beside the defaults where they were run, notes, and what all comes from."""
    about, rows = content["about"], content["rows"]
    settings = [row for row in rows if row["name"] not in ROWS]
    lines = [*_lines([row for row in rows if row["name"] in ROWS] or settings), ""]
    if len(settings) < len(rows) and settings:
        heading = "Settings beside the defaults and what goes beyond the paper"
        lines += [f"{heading}; first the default, of as many seeds:", "", *_lines([*content["beside"], *settings]), ""]
    lines += [NOTES + f" Chance of a random frame: {rows[0]['chance']['mean']:.1f}.", ""]
    lines += [f"`{about['command']}`, commit {about['commit']}; {about['machine']}.", ""]
    return "\n".join(lines)


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["| | seeds | " + " | ".join(COLUMNS.values()) + " |", "|" + " --- |" * (len(COLUMNS) + 2)]
    return head + [
        f"| {row['title']} | {row['seeds']} | " + " | ".join(_cell(row, key) for key in COLUMNS) + " |" for row in rows
    ]


def terminal(content: Mapping[str, Any]) -> list[str]:
    """The table's means for a terminal."""
    keys = [key for key in COLUMNS if key not in ("em", "train_peak_mb")]
    lines = [f"{'':24}" + "".join(f"{COLUMNS[key].split()[0][:8]:>10}" for key in keys)]
    for row in content["rows"]:
        lines.append(f"{row['name']:24}" + "".join(f"{row[key]['mean']:10.2f}" for key in keys))
    return [*lines, f"chance of a random frame {content['rows'][0]['chance']['mean']:.1f}"]


def _cell(row: Mapping[str, Any], key: str) -> str:
    found = row[key]
    digits = 3 if key == "train_seconds_a_sample" else 0 if key in ("train_peak_mb", "frame_tokens") else 1
    text = f"{found['mean']:.{digits}f}"
    if found["low"] is None or key in ("train_seconds_a_sample", "train_peak_mb", "frame_tokens"):
        return text
    low, high = max(0.0, found["low"]), min(100.0, found["high"])  # of two seeds the interval is wider than what can be
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})"
