"""Where in the frames a sampler's score comes from: token scores laid over the frames of some held-out exams.

python playground/ablation/heatmaps.py --model full=DIR --model best=DIR --gold GOLD --images DIR --out PNG
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image

from exam_data import read_lines
from llava_ultra_ext.model.opening import open_model
from measures import normal_exams

matplotlib.use("Agg")

import matplotlib.pyplot as plt


def token_scores(opened: Any, pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (k,) of an exam's frames, and each token's part of them (k, grid, grid)."""
    pixels = opened.image_processor.preprocess(list(pictures), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        h = opened.model.encode_images(pixels.to(opened.model.device, opened.model.dtype))
        sampler = opened.model.get_model().mm_projector.sampler
        scores, parts = sampler(h), sampler.contributions(h)
    side = round(parts.shape[1] ** 0.5)
    return scores.float().numpy(), parts.float().numpy().reshape(-1, side, side)


def draw(models: dict[str, Any], exams: Sequence[dict[str, Any]], images: Path) -> plt.Figure:
    """A row of frames an exam and model: token scores in colour, the chosen frame outlined, valid ones marked."""
    widest = max(len(exam["image"]) for exam in exams)
    rows = [(exam, name) for exam in exams for name in models]
    figure, axes = plt.subplots(len(rows), widest, figsize=(1.5 * widest + 1, 1.65 * len(rows)), squeeze=False)
    for (exam, name), line in zip(rows, axes, strict=True):
        pictures = [Image.open(images / frame).convert("RGB") for frame in exam["image"]]
        scores, parts = token_scores(models[name], pictures)
        parts = parts - parts.mean(0)  # what tells the frames apart; what all share decides nothing
        reach = np.abs(parts).max()
        for place, axis in enumerate(line):
            axis.set_xticks([])
            axis.set_yticks([])
            if place >= len(pictures):
                axis.axis("off")
                continue
            size = pictures[place].size
            axis.imshow(pictures[place])
            axis.imshow(
                parts[place],
                cmap="coolwarm",
                alpha=0.45,
                vmin=-reach,
                vmax=reach,
                extent=(0, size[0], size[1], 0),
                interpolation="bilinear",
            )
            chosen = place == int(scores.argmax())
            for spine in axis.spines.values():
                spine.set(color="#1b6ca8" if chosen else "none", linewidth=3)
            mark = "valid " if place in exam["valid_frames"] else ""
            axis.set_title(f"{mark}{scores[place]:.2f}", fontsize=7, color="green" if mark else "black")
        line[0].set_ylabel(name, fontsize=8)
    figure.tight_layout()
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="NAME=DIR", help="a trained folder; again for another")
    add("--base", help="the language model of a LoRA folder")
    add("--gold", type=Path, required=True, help="held-out questions with valid_frames")
    add("--images", type=Path, required=True, help="where picture names start")
    add("--exams", type=int, default=4)
    add("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    lines = read_lines(args.gold)
    normal = normal_exams(lines)
    first = {line["exam_id"]: line for line in reversed(lines) if line["exam_id"] not in normal}
    exams = [exam for exam in first.values() if 3 <= len(exam["image"]) <= 7][:: max(1, len(first) // args.exams)]
    pairs = [given.split("=", 1) for given in args.model]
    models = {name: open_model(folder, args.base, "cpu") for name, folder in pairs}
    figure = draw(models, exams[: args.exams], args.images)
    figure.savefig(args.out, dpi=120)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
