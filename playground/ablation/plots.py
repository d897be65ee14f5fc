"""What the ablation looks like: figures with intervals, and frame choice against k and the share of valid frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from measures import mean_by
from rows import ALL, ROWS
from table import interval

matplotlib.use("Agg")

import matplotlib.pyplot as plt

FRAME_EDGES = (2, 3, 4, 5, 7, 9, 17)
SHARE_EDGES = (0.0, 0.15, 0.25, 0.35, 0.55, 1.01)
SHOWN = ("best", "full", "func_a", "no_sam", "random", "oracle")
COLOURS = {"ours": "#1b6ca8", "paper": "#c2571a", "baseline": "#7a7a7a", "default": "#1b6ca8"}

Found = Mapping[str, Sequence[Mapping[str, Any]]]


def write(found: Found, folder: Path) -> None:
    """Writes rows.png and frames.png."""
    _save(_bars(found), folder / "rows.png")
    _save(_curves(found), folder / "frames.png")


def _bars(found: Found) -> plt.Figure:
    """Three figures of every row of the table, with intervals over seeds."""
    names = [name for name in ROWS if name in found][::-1] or list(found)[::-1]
    panels = {"frame_choice": "valid frame chosen, %", "f1": "F1 of open answers", "fine": "fine detail, exact, %"}
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 0.42 * len(names) + 1.4), sharey=True)
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        for place, name in enumerate(names):
            figures = interval([result[key] for result in found[name]])
            axis.barh(place, figures["mean"], color=COLOURS[ALL[name].group], height=0.62)
            if figures["low"] is not None:
                axis.plot([max(0.0, figures["low"]), min(100.0, figures["high"])], [place, place], color="black", lw=1)
            axis.text(1, place, f"{figures['mean']:.1f}", va="center", color="white", fontsize=8)
        axis.set_xlabel(label)
        axis.set_xlim(0, 100)
        axis.spines[["top", "right"]].set_visible(False)
    chance = found[names[0]][0]["chance"]
    axes[0].axvline(chance, color="black", ls=":", lw=1)
    axes[0].text(chance + 1, len(names) - 0.45, "chance", fontsize=8)
    axes[0].set_yticks(range(len(names)), [ALL[name].title for name in names])
    return figure


def _curves(found: Found) -> plt.Figure:
    """Frame choice against the number of frames and against the share of valid ones."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 4), sharey=True)
    for axis, key, edges, label in (
        (axes[0], "frames", FRAME_EDGES, "frames of the exam, k"),
        (axes[1], "share", SHARE_EDGES, "share of valid frames"),
    ):
        for name in (name for name in SHOWN if name in found):
            exams = [exam for result in found[name] for exam in result["exams"]]
            bins = mean_by(exams, key, edges)
            places = [_middle(entry, key) for entry in bins]
            axis.plot(places, [entry["frame_choice"] for entry in bins], marker="o", ms=4, label=ALL[name].title)
        bins = mean_by(next(iter(found.values()))[0]["exams"], key, edges)
        places = [_middle(entry, key) for entry in bins]
        axis.plot(places, [entry["chance"] for entry in bins], color="black", ls=":", label="chance")
        axis.set_xlabel(label)
        axis.set_ylim(0, 103)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("valid frame chosen, %")
    axes[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _middle(entry: Mapping[str, float], key: str) -> float:
    high = entry["high"] - 1 if key == "frames" else min(1.0, entry["high"])
    return (entry["low"] + high) / 2


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=130, format="png")
    plt.close(figure)
    partial.replace(path)
