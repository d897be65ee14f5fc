"""The picture of `train_step.py`: seconds a step over k, and where they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from measuring import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, log_seconds, new_figure

COLOURS = {
    "llm": GREY,
    "optimizer": "#cccccc",
    "clip": ORANGE,
    "sam": RED,
    "projections": "#56b4e9",
    "fusion": BLUE,
    "sampler": GREEN,
    "teacher": PURPLE,
    "tower": "#f0e442",
    "loading": "#000000",
}


def draw(result: dict[str, Any], path: Path) -> None:
    """Both sides over k with stock LLaVA as a line; a bar of shares for each kind of step."""
    figure = new_figure(11, 3.6)
    times, shares = figure.subplots(1, 2)
    for start, label, colour in (("ultra_k", "CLIP + SAM", RED), ("ultra_cached_k", "feature cache", BLUE)):
        found = {int(key[len(start) : -2]): result[key] for key in result if _is_of(key, start)}
        ks = sorted(found)
        times.plot(ks, [found[k] for k in ks], "o-", color=colour, label=f"ours, {label}")
    (with_teacher,) = (key for key in result if key.endswith("_teacher_s"))
    k = int(with_teacher.removeprefix("ultra_cached_k").removesuffix("_teacher_s"))
    times.plot([k], [result[with_teacher]], "^", color=PURPLE, label="feature cache, teacher in the step")
    times.axhline(result["stock_k1_s"], color=GREY, linestyle="--", label="stock LLaVA, CLIP, one picture")
    times.set_xscale("log", base=2)
    times.set_xticks(ks, [str(one) for one in ks])
    log_seconds(times)
    times.set_xlabel("frames of an exam", fontsize=9)
    times.set_title("seconds a step", fontsize=10)
    times.legend(fontsize=8)
    sides = ["stock_k1", f"ultra_k{k}", f"ultra_cached_k{k}", f"ultra_cached_k{k}_teacher"]
    left = [0.0] * len(sides)
    for part, colour in COLOURS.items():
        widths = [100 * result["shares"][side].get(part, 0.0) for side in sides]
        if any(widths):
            shares.barh([side.replace("_", " ") for side in sides], widths, left=left, color=colour, label=part)
            left = [low + width for low, width in zip(left, widths, strict=True)]
    shares.invert_yaxis()
    shares.set_title("% of the step", fontsize=10)
    shares.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for axes in (times, shares):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _is_of(key: str, start: str) -> bool:
    return key.startswith(start) and key.endswith("_s") and key[len(start) : -2].isdigit()
