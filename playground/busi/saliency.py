"""What the eye alone would choose: the picture that CLIP finds most unlike the others of its exam, without any text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from busi.exams import Exam

LAYER = -2
"""Of CLIP, as the tower reads it."""


def mean_features(clip: Path, folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Picture name -> mean of its patch tokens (C,)."""
    from transformers import CLIPImageProcessor, CLIPVisionModel

    model, processor = CLIPVisionModel.from_pretrained(clip).eval(), CLIPImageProcessor.from_pretrained(clip)
    found = {}
    for name in tqdm(names, desc="CLIP", unit="picture", mininterval=5):
        pixels = processor(Image.open(folder / name).convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            tokens = model(pixels, output_hidden_states=True).hidden_states[LAYER][0, 1:]
        found[name] = tokens.mean(0).numpy()
    return found


def farthest(features: np.ndarray) -> int:
    """Of (k, C) features, the one farthest from their mean."""
    return int(np.linalg.norm(features - features.mean(0), axis=1).argmax())


def hits(exams: Sequence[Exam], features: dict[str, np.ndarray]) -> list[float]:
    """For each exam, 1 where the farthest picture is a valid one."""
    return [
        float(farthest(np.stack([features[picture.name] for picture in exam.pictures])) in exam.valid) for exam in exams
    ]
