"""A folder of synthetic speckle exams in the training file's format (DESIGN: exam manifest), for tests.

Every frame is speckle in a scan sector. A valid frame holds a dark round nodule, the others do not, so `valid_frames`
(indices into `image`, from 0) is true by construction.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FRAMES_PER_EXAM = (1, 2, 3, 4, 7)
_SITES = ("甲状腺", "乳腺", "肝脏", "胆囊", "肾脏")


def make_exams(
    folder: str | Path,
    frames_per_exam: Sequence[int] = FRAMES_PER_EXAM,
    height: int = 48,
    width: int = 64,
    seed: int = 0,
) -> Path:
    """Writes `train.json` and `frames/*.png` into `folder` and returns it.

    The list holds one exam per entry of `frames_per_exam` (`image` is a list, with `findings` and `valid_frames`), then
    a sample of LLaVA's single-image form (`image` is a string) and one without an image. Paths are relative to
    `folder`.
    """
    root = Path(folder)
    (root / "frames").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    samples = [
        _exam(root, f"US-TEST-{number:04d}", count, height, width, _SITES[number % len(_SITES)], generator)
        for number, count in enumerate(frames_per_exam, start=1)
    ]
    samples += [_single_image(root, height, width, generator), _text_only()]
    partial = root / "train.json.partial"
    partial.write_text(json.dumps(samples, ensure_ascii=False, indent=1), encoding="utf-8")
    partial.replace(root / "train.json")
    return root


def speckle(height: int, width: int, nodule: bool, generator: np.random.Generator) -> Image.Image:
    """One greyscale frame (RGB): Rayleigh speckle inside a sector, with a dark disc if `nodule`."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = generator.rayleigh(60.0, size=(height, width))
    if nodule:
        centre = generator.uniform(0.4, 0.6, size=2) * (height, width)
        pixels[np.hypot(rows - centre[0], columns - centre[1]) < 0.18 * height] *= 0.15
    pixels[np.abs(columns - width / 2) > 0.3 * width + 0.2 * rows] = 0.0
    grey = np.clip(pixels, 0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))


def _exam(
    root: Path, exam_id: str, count: int, height: int, width: int, site: str, generator: np.random.Generator
) -> dict[str, Any]:
    valid = int(generator.integers(count))
    names = [f"frames/{exam_id}_{index + 1:03d}.png" for index in range(count)]
    for index, name in enumerate(names):
        speckle(height, width, index == valid, generator).save(root / name)
    return {
        "id": f"{exam_id}-description",
        "exam_id": exam_id,
        "image": names,
        "site": site,
        "modality": "ultrasound",
        "findings": f"{site}内见一低回声结节，边界清晰，形态规则，未见明显血流信号。",
        "valid_frames": [valid],
        "conversations": [
            {"from": "human", "value": "<image>\n" * count + f"请描述该{site}超声图像。"},
            {"from": "gpt", "value": f"{site}内见一低回声结节，边界清晰。"},
            {"from": "human", "value": "请给出诊断意见。"},
            {"from": "gpt", "value": f"{site}结节，建议随访复查。"},
        ],
    }


def _single_image(root: Path, height: int, width: int, generator: np.random.Generator) -> dict[str, Any]:
    speckle(height, width, False, generator).save(root / "frames/single.png")
    conversations = [
        {"from": "human", "value": "Is there a nodule in this picture?\n<image>"},
        {"from": "gpt", "value": "No."},
    ]
    return {"id": "single-image", "image": "frames/single.png", "conversations": conversations}


def _text_only() -> dict[str, Any]:
    conversations = [
        {"from": "human", "value": "超声检查前需要空腹吗？"},
        {"from": "gpt", "value": "胆囊检查需要空腹，甲状腺检查不需要。"},
    ]
    return {"id": "text-only", "conversations": conversations}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: the exams of the tests into a folder."""
    parser = argparse.ArgumentParser(description="Write synthetic speckle exams in the training file's format.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    print(make_exams(args.out, seed=args.seed))


if __name__ == "__main__":
    main()
