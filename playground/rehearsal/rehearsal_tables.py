"""The rehearsal's tables as text: parts, disk, the paper's set-up, the scaling note."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paper_plan import PAPER_HOURS, WAYS

Rows = Sequence[Sequence[str]]


def part_rows(parts: Sequence[Mapping[str, Any]]) -> Rows:
    """Seconds in all, until the first step, of the first and of the last step; memory; operations."""
    gpu = any(part["gpu_mb"] is not None for part in parts)
    head = ["part", "seconds", "loading", "first step", "last step", "TFLOP", "peak MB", *(["GPU MB"] if gpu else [])]
    rows = [head]
    for part in parts:
        steps = part["steps_s"]
        row = [part["title"], _number(part["seconds"]), _number(part["start_s"])]
        row += [_number(steps[0] if steps else None), _number(steps[-1] if len(steps) > 1 else None)]
        row += [_number(part["tflop"]), _number(part["peak_mb"])]
        rows.append([*row, *([_number(part["gpu_mb"])] if gpu else [])])
    return rows


def size_rows(sizes: Mapping[str, float]) -> Rows:
    """MB on the disk."""
    return [["on the disk", "MB"], *([name, _number(size)] for name, size in sizes.items())]


def share_rows(result: Mapping[str, Any]) -> Rows:
    """What each kind of work reaches of the peak, here and as taken for the paper's GPUs."""
    rows = [["kind of work", "of the peak here", "taken for the plan"]]
    for kind, share in result["assumptions"]["utilisation"].items():
        here = result["utilisation"].get(kind)
        rows.append([kind, "-" if here is None else f"{here:.0%}", f"{share:.0%}"])
    return rows


def plan_rows(plan: Mapping[str, Mapping[str, float]]) -> Rows:
    """Hours of the paper's set-up by part, one column a way, and the paper's own."""
    names = sorted({name for way in plan.values() for name in way if name != "total"})  # cache, score-frames, stages
    rows = [["hours on all GPUs", *plan]]
    for name in [*names, "total"]:
        rows.append([name, *("" if name not in way else _number(way[name]) for way in plan.values())])
    return [*rows, ["the paper's", *([""] * (len(plan) - 1)), f"{PAPER_HOURS:g}"]]


def scaling_rows(scaling: Sequence[Mapping[str, Any]]) -> Rows:
    """A row a figure, a column a number of frames."""
    rows = [["", *(f"{cost['frames']:,} frames" for cost in scaling)]]
    names = [name for name in scaling[0] if name != "frames"]
    return [*rows, *([name, *(_number(cost[name]) for cost in scaling)] for name in names)]


def sections(result: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Everything, titled."""
    given = result["assumptions"]
    machine = (
        f"{given['gpus']} GPUs of {given['gpu_tflops']:g} TFLOP/s, {given['exams']:,} exams, {given['frames']:,} "
        f"frames, LLaMA of {given['llm'].upper()}, {given['stage1_epochs']} + {given['stage2_epochs']} epochs, "
        f"{given['samples']} question(s) an exam, {given['text']} + {given['findings']} tokens"
    )
    peak = f"{result['peak_tflops']:.3g} TFLOP/s at best in {result['asked']['dtype']}"
    return [
        (f"Rehearsal, {_size(result['asked'])}, {result['machine']}: {peak}", part_rows(result["parts"])),
        ("Sizes", size_rows(result["sizes_mb"])),
        ("Rates", share_rows(result)),
        (f"The paper's set-up: {machine}", plan_rows(result["plan"])),
        (f"Scaling, {given['gpus']} GPUs", scaling_rows(result["scaling"])),
    ]


def _size(asked: Mapping[str, Any]) -> str:
    return "small shapes (--quick), whose rates say nothing" if asked["quick"] else f"LLaMA of {asked['llm'].upper()}"


def terminal(result: Mapping[str, Any]) -> str:
    """For the screen."""
    blocks = []
    for title, rows in sections(result):
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        lines = ["  ".join(_pad(cell, widths[n], n) for n, cell in enumerate(row)).rstrip() for row in rows]
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join([*blocks, *_notes()])


def markdown(result: Mapping[str, Any]) -> str:
    """For a page."""
    blocks = []
    for title, rows in sections(result):
        head, *others = ["| " + " | ".join(row) + " |" for row in rows]
        rule = "| " + " | ".join(["---", *["---:"] * (len(rows[0]) - 1)]) + " |"
        blocks.append("\n".join([f"**{title}**", "", head, rule, *others]))
    return "\n\n".join([*blocks, *_notes()]) + "\n"


def _notes() -> list[str]:
    ways = "; ".join(f"{way}: {text}" for way, text in WAYS.items())
    return [
        f"Ways: {ways}. Hours are matrix products over the stated rates: no decoding, communication, checkpoints or "
        "evaluation. Stage 1's TFLOP hold the teacher twice: short runs measure its gap in every step."
    ]


def _pad(cell: str, width: int, place: int) -> str:
    return cell.ljust(width) if place == 0 else cell.rjust(width)


def _number(value: float | None) -> str:
    """Three digits that say something."""
    if value is None:
        return "-"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
