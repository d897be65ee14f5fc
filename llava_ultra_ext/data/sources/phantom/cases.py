"""Draw exams: which lesions, which frames of a sweep, what distracts in the frames that show nothing.

Few frames are valid and many are near-identical, as in a clinic. Without distractors visual saliency alone finds the
valid frame, so most exams have some.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from llava_ultra_ext.data.sources.phantom.case import (
    CALCIFICATIONS,
    DISTRACTORS,
    MARGINS,
    SITES,
    TEXTURES,
    Case,
    FramePlan,
    Lesion,
)
from llava_ultra_ext.data.sources.phantom.sites import SITE, SWEEP_MM, LesionKind, Site, is_suspicious

SIZES = (64, 512)
"""Smallest and largest side of a picture in pixels."""

MOST_FRAMES = 16

_SHARES = ("normal", "two_lesions", "distractor_exams", "stray_exams", "edge_frames", "doppler_exams")
_FINE = [(margin, calc, texture) for margin in MARGINS for calc in CALCIFICATIONS for texture in TEXTURES]
_CALC_WEIGHT = {"none": 0.4, "micro": 0.4, "coarse": 0.2}
_MIDDLE = (13.0, SWEEP_MM - 13.0)  # centres of lesions along z; both ends of a sweep stay free of them


@dataclass(frozen=True)
class PhantomSettings:
    """How exams are drawn.

    Args:
        size: side of a picture in pixels, 64 to 512.
        min_frames, max_frames: of an exam, 1 to 16.
        normal: share of exams without a lesion. `two_lesions`: share of the others that have two.
        distractor_exams, stray_exams: share of exams with distractors, with frames of another organ.
        valid_share: wanted share of valid frames; at least one in each exam with a lesion.
        edge_frames: share of stays in the sweep that show a lesion's edge only.
        doppler_exams: share of exams whose valid frames have colour Doppler on; the lesions of the others have no flow.
            All, since texts state the flow.
        sites: what exams may be of.
        least_visible: share of its largest cross-section by which a frame shows a lesion.
        lesion_scale: times the site's sizes of lesions. `detail_scale`: times that of their spikes and
            micro-calcifications; for pictures or models that see less.
        shuffled: frames in random order, else as the sweep goes.
        plain: texts with one wording a value, in one order; for language models that have read little.
        easy: large lesions that are not as bright as the organ, no edges. For tests that train for a minute.
    """

    size: int = 128
    min_frames: int = 2
    max_frames: int = MOST_FRAMES
    normal: float = 0.2
    two_lesions: float = 0.15
    distractor_exams: float = 0.7
    stray_exams: float = 0.25
    valid_share: float = 0.25
    edge_frames: float = 0.25
    doppler_exams: float = 1.0
    sites: tuple[str, ...] = SITES
    least_visible: float = 0.5
    lesion_scale: float = 1.0
    detail_scale: float = 1.0
    shuffled: bool = True
    plain: bool = False
    easy: bool = False

    def check(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            ValueError: names the setting, its value and what is allowed.
        """
        if not SIZES[0] <= self.size <= SIZES[1]:
            raise ValueError(f"size {self.size}: must be {SIZES[0]} to {SIZES[1]} pixels. Choose such a size.")
        if not 1 <= self.min_frames <= self.max_frames <= MOST_FRAMES:
            raise ValueError(
                f"min_frames {self.min_frames}, max_frames {self.max_frames}: an exam has 1 to {MOST_FRAMES} frames. "
                "Give 1 <= min_frames <= max_frames."
            )
        for name in _SHARES:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} {getattr(self, name)}: is a share. Give a number from 0 to 1.")
        for name in ("valid_share", "least_visible"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} {getattr(self, name)}: is a share above 0. Give a number up to 1.")
        if self.least_visible > 0.95:
            raise ValueError(
                f"least_visible {self.least_visible}: no sweep cuts so near the middle. Give at most 0.95."
            )
        unknown = [name for name in self.sites if name not in SITE]
        if unknown or not self.sites:
            raise ValueError(f"sites {list(self.sites)}: not all known. Choose some of {', '.join(SITE)}.")
        if not 0.25 <= self.detail_scale <= 4.0:
            raise ValueError(f"detail_scale {self.detail_scale}: must be 0.25 to 4 times the usual detail.")
        for name in self.sites:
            self._check_lesion(SITE[name])

    def _check_lesion(self, site: Site) -> None:
        largest = self.lesion_scale * site.lesion_mm[1]
        if self.lesion_scale <= 0 or largest > min(site.organ):
            raise ValueError(
                f"lesion_scale {self.lesion_scale}: a lesion of {2 * largest:.1f} mm does not fit the {site.key} of "
                f"{2 * min(site.organ):.1f} mm. Give more than 0 and at most {min(site.organ) / site.lesion_mm[1]:.2f}."
            )


def draw_case(exam_id: str, seed: int, settings: PhantomSettings) -> Case:
    """Draw one exam; the same seed and settings give the same exam.

    Raises:
        ValueError: see `PhantomSettings.check`; a negative seed.
    """
    settings.check()
    if seed < 0:
        raise ValueError(f"seed {seed}: must not be negative. Give 0 or more.")
    rng = np.random.default_rng([seed, 1])
    site = SITE[settings.sites[rng.integers(len(settings.sites))]]
    count = int(rng.integers(settings.min_frames, settings.max_frames + 1))
    doppler = bool(rng.random() < settings.doppler_exams)
    lesions: tuple[Lesion, ...] = ()
    if rng.random() >= settings.normal:
        lesions = _draw_lesions(rng, site, settings, doppler, count)
    frames = _draw_frames(rng, site, lesions, count, doppler, settings)
    return Case(exam_id, seed, site.key, lesions, frames, settings.plain, settings.detail_scale)


def _pick(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    weights = np.array(list(shares.values()))
    return list(shares)[rng.choice(len(weights), p=weights / weights.sum())]


def _draw_lesions(
    rng: np.random.Generator, site: Site, settings: PhantomSettings, doppler: bool, count: int
) -> tuple[Lesion, ...]:
    first = _draw_lesion(rng, site, settings, doppler, list(site.places), float(rng.uniform(*_MIDDLE)))
    if rng.random() >= settings.two_lesions:
        return (first,)
    # Both in one frame, or so far apart along z that none shows both. Apart takes two valid frames.
    together = count < 6 or rng.random() < 0.5
    # The second lies elsewhere, so that a text can tell the two apart; one picture has one side of a two-sided organ.
    places = [first.place] if site.two_sided else [place for place in site.places if place != first.place]
    for _ in range(40):
        away = (
            rng.uniform(-0.3, 0.3)
            if together
            else math.copysign(rng.uniform(10.5, 12.0), 0.5 * SWEEP_MM - first.centre[2])
        )
        second = _draw_lesion(rng, site, settings, doppler, places, first.centre[2] + float(away))
        if not together or _free(first, second):
            return (first, second)
    return (first,)


def _free(one: Lesion, other: Lesion) -> bool:
    """Whether two lesions keep 2 mm apart in the picture's plane."""
    gap = [
        abs(a - b) - r - s
        for a, b, r, s in zip(one.centre[:2], other.centre[:2], one.radii[:2], other.radii[:2], strict=True)
    ]
    return max(gap) >= 2.0


def _draw_lesion(
    rng: np.random.Generator, site: Site, settings: PhantomSettings, doppler: bool, places: list[str], z: float
) -> Lesion:
    name = list(site.lesions)[rng.choice(3, p=(0.24, 0.38, 0.38))]
    kind = site.lesions[name]
    place = places[rng.integers(len(places))]
    box = site.places[place]
    low, high = (settings.lesion_scale * bound for bound in site.lesion_mm)
    across = rng.uniform(0.5 * (low + high) if settings.easy else low, high)
    deep = max(0.75 * low, across * rng.uniform(0.68, 1.0))
    margin, calcification, texture = _draw_fine(rng, kind)
    echoes = {echo: share for echo, share in kind.echo.items() if not (settings.easy and echo == "isoechoic")}
    return Lesion(
        kind=name,
        place=place,
        centre=(float(rng.uniform(*box.x)), float(rng.uniform(*box.y)), z),
        radii=(float(across), float(deep), float(rng.uniform(3.0, 5.0))),
        echo=_pick(rng, echoes),
        margin=margin,
        shape=_pick(rng, kind.shape),
        texture=texture,
        calcification=calcification,
        # Coarse calcification throws a shadow in the picture, so the record says shadow.
        posterior="shadow" if calcification == "coarse" else _pick(rng, kind.posterior),
        flow=_pick(rng, kind.flow) if doppler else "none",
    )


def _draw_fine(rng: np.random.Generator, kind: LesionKind) -> tuple[str, str, str]:
    """Margin, calcification and texture that `is_suspicious` agrees with."""
    if kind.nature == "cyst":
        return "smooth", "none", "homogeneous"
    fine = [values for values in _FINE if is_suspicious(*values) == (kind.nature == "suspicious")]
    weights = np.array([_CALC_WEIGHT[calcification] for _, calcification, _ in fine])
    return fine[rng.choice(len(fine), p=weights / weights.sum())]


def visibility(lesion: Lesion, z: float) -> float:
    """Share of the ellipsoid's largest cross-section that the plane z cuts, 1 - (dz / rz)^2, at least 0."""
    return max(0.0, 1.0 - ((z - lesion.centre[2]) / lesion.radii[2]) ** 2)


def _draw_frames(
    rng: np.random.Generator,
    site: Site,
    lesions: tuple[Lesion, ...],
    count: int,
    doppler: bool,
    settings: PhantomSettings,
) -> tuple[FramePlan, ...]:
    places = sorted(_valid_places(rng, lesions, count, settings) + _other_places(rng, lesions, count, settings)[:count])
    valid = [z for z in places if _shows(lesions, z, settings.least_visible)]
    spare = [z for z in places if z not in valid]
    # All valid frames come first, so that cutting to the exam's length drops others.
    chosen = sorted((valid + list(rng.permutation(spare)))[:count])
    empty = [place for place, z in enumerate(chosen) if not _shows(lesions, z, settings.least_visible)]
    strays = _strays(rng, empty, bool(lesions), count, settings)
    distracting = _distracting(rng, empty, settings)
    others = [name for name in SITES if name != site.key]
    frames = []
    for place, z in enumerate(chosen):
        stray = place in strays
        shown = tuple(0.0 if stray else visibility(lesion, z) for lesion in lesions)
        # Often on in other frames too: the colour box must not tell which frames are valid.
        on = rng.random() < (0.75 if doppler else 0.2) if place in empty else doppler
        organ = others[rng.integers(len(others))] if stray else site.key
        frames.append(FramePlan(organ, float(z), bool(on), distracting.get(place, ()), shown))
    order = rng.permutation(count) if settings.shuffled else range(count)
    return tuple(frames[place] for place in order)


def _shows(lesions: Iterable[Lesion], z: float, least: float) -> bool:
    return any(visibility(lesion, z) >= least for lesion in lesions)


def _stay(rng: np.random.Generator, z: float, frames: int) -> list[float]:
    """Frames of one place where the probe rests: near-identical, 0.15 mm apart."""
    return [float(z + shift) for shift in rng.normal(0.0, 0.15, frames)]


def _valid_places(
    rng: np.random.Generator, lesions: tuple[Lesion, ...], count: int, settings: PhantomSettings
) -> list[float]:
    if not lesions:
        return []
    wanted = max(1, math.floor(settings.valid_share * count + rng.random()))
    apart = len(lesions) == 2 and abs(lesions[0].centre[2] - lesions[1].centre[2]) > 1.0
    groups = [(lesions[0],), (lesions[1],)] if apart else [lesions]
    wanted = min(count, max(wanted, len(groups)))
    places: list[float] = []
    for number, group in enumerate(groups):
        frames = wanted // len(groups) + (number < wanted % len(groups))
        # So near the middles that the frame shows all of the group by more than the least share.
        reach = [math.sqrt(1.0 - settings.least_visible) * lesion.radii[2] * 0.98 for lesion in group]
        low = max(lesion.centre[2] - far for lesion, far in zip(group, reach, strict=True))
        high = min(lesion.centre[2] + far for lesion, far in zip(group, reach, strict=True))
        rest = 0.5 * (low + high) + rng.uniform(-0.35, 0.35) * (high - low)
        places += [min(high, max(low, z)) for z in _stay(rng, rest, frames)]
    return places


def _other_places(
    rng: np.random.Generator, lesions: tuple[Lesion, ...], count: int, settings: PhantomSettings
) -> list[float]:
    """At least `count` places along z that show no lesion by the least share."""
    places: list[float] = []
    while len(places) < count:
        stay = int(rng.integers(1, 5))
        if lesions and not settings.easy and rng.random() < settings.edge_frames:
            lesion = lesions[rng.integers(len(lesions))]
            share = rng.uniform(0.1, 0.8) * settings.least_visible
            z = lesion.centre[2] + rng.choice((-1.0, 1.0)) * lesion.radii[2] * math.sqrt(1.0 - share)
            limit = settings.least_visible
        else:
            z = rng.uniform(1.0, SWEEP_MM - 1.0)
            limit = 1e-9
        places += [place for place in _stay(rng, z, stay) if not _shows(lesions, place, limit)]
    return places


def _strays(
    rng: np.random.Generator, empty: list[int], lesion: bool, count: int, settings: PhantomSettings
) -> set[int]:
    wanted = int(rng.integers(1, 3)) if rng.random() < settings.stray_exams else 0
    room = len(empty) if lesion else count - 1  # a normal exam keeps a frame of its own organ
    return set(rng.permutation(empty)[: min(wanted, room)].tolist()) if wanted else set()


def _distracting(rng: np.random.Generator, empty: list[int], settings: PhantomSettings) -> dict[int, tuple[str, ...]]:
    if not empty or rng.random() >= settings.distractor_exams:
        return {}
    frames = rng.permutation(empty)[: max(1, round(len(empty) * rng.uniform(0.3, 0.8)))]
    return {
        int(place): tuple(sorted(rng.choice(DISTRACTORS, size=1 + int(rng.random() < 0.3), replace=False).tolist()))
        for place in frames
    }
