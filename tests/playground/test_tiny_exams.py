"""The synthetic exams of the tests: the valid frame is the one with the nodule."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image


def test_exam_folder_has_the_samples_that_tests_need(exam_folder):
    samples = json.loads((exam_folder / "train.json").read_text(encoding="utf-8"))
    exams = [sample for sample in samples if isinstance(sample.get("image"), list)]
    assert [len(exam["image"]) for exam in exams] == [1, 2, 3, 4, 7]
    assert sum(isinstance(sample.get("image"), str) for sample in samples) == 1
    assert sum("image" not in sample for sample in samples) == 1
    for exam in exams:
        assert exam["conversations"][0]["value"].count("<image>") == len(exam["image"])
        centres = []
        for name in exam["image"]:
            pixels = np.asarray(Image.open(exam_folder / name), dtype=float)
            centres.append(pixels[16:32, 22:42].mean())
        assert exam["valid_frames"] == [int(np.argmin(centres))] or len(centres) == 1
