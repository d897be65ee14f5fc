"""Exams with any combination of attributes, without drawing anything: what the texts must be true of."""

from __future__ import annotations

import random

from llava_ultra_ext.data.sources.phantom import case as record

KINDS = {
    "thyroid": ("cyst", "benign_nodule", "suspicious_nodule"),
    "breast": ("cyst", "fibroadenoma", "suspicious_mass"),
    "liver": ("cyst", "hemangioma", "suspicious_mass"),
    "kidney": ("cyst", "angiomyolipoma", "suspicious_mass"),
    "uterus": ("cyst", "fibroid", "suspicious_mass"),
    "prostate": ("cyst", "hyperplasia", "suspicious_nodule"),
}
PLACES = {
    "thyroid": ("right", "left"),
    "breast": ("shallow", "deep"),
    "liver": ("near_capsule", "deep"),
    "kidney": ("upper", "middle", "lower"),
    "uterus": ("anterior", "posterior"),
    "prostate": ("transition", "peripheral"),
}
VOCABULARY = {
    "echo": record.ECHOES,
    "margin": record.MARGINS,
    "shape": record.SHAPES,
    "texture": record.TEXTURES,
    "calcification": record.CALCIFICATIONS,
    "posterior": record.POSTERIORS,
    "flow": record.FLOWS,
}


def a_lesion(choice: random.Random, site: str, **given: str) -> record.Lesion:
    drawn = {name: choice.choice(values) for name, values in VOCABULARY.items()} | given
    return record.Lesion(
        kind=choice.choice(KINDS[site]),
        place=choice.choice(PLACES[site]),
        centre=(0.0, 20.0, 0.0),
        radii=(choice.uniform(2, 15), choice.uniform(2, 15), 5.0),
        **drawn,
    )


def a_case(seed: int, lesions: int | None = None, site: str | None = None, **given: str) -> record.Case:
    choice = random.Random(seed)
    site = site or choice.choice(record.SITES)
    count = choice.choice((0, 1, 1, 2, 3)) if lesions is None else lesions
    found = tuple(a_lesion(choice, site, **given) for _ in range(count))
    frames = tuple(
        record.FramePlan(site, float(number), choice.random() < 0.5, (), tuple(float(number == 1) for _ in found))
        for number in range(3)
    )
    return record.Case(f"e{seed}", seed, site, found, frames)
