"""What lies over the tissue: distractors in frames that show nothing of the findings, the colour box, marks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from llava_ultra_ext.data.sources.phantom.case import FramePlan
from llava_ultra_ext.data.sources.phantom.points import Array, Points, Tissue
from llava_ultra_ext.data.sources.phantom.probe import Probe
from llava_ultra_ext.data.sources.phantom.sites import SITE, Site

Picture = NDArray[np.uint8]

_CALIPER = (240, 220, 60)
_BOX = (90, 200, 110)


def add_distractors(tissue: Tissue, plan: FramePlan, points: Points, rng: np.random.Generator) -> None:
    """Put a frame's distractors into the tissue, all but calipers; with Doppler on also colour that means nothing."""
    site = SITE[plan.site]
    if "vessel" in plan.distractors:
        _vessel(tissue, site, points, rng)
    if "shadow" in plan.distractors:
        _shadow(tissue, site, points, rng)
    if "reverberation" in plan.distractors:
        _reverberation(tissue, site, points, rng)
    if plan.doppler and max(plan.visibility, default=0.0) == 0.0:
        for _ in range(int(rng.integers(1, 4))):
            _colour_only(tissue, site, points, rng)


def _tube(points: Points, centre: NDArray[np.float64], radii: tuple[float, float], tilt: float) -> tuple[Array, Array]:
    """Coordinates in which a tilted ellipse is the unit circle."""
    x, y = points.x - np.float32(centre[0]), points.y - np.float32(centre[1])
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    return (cos * x + sin * y) / np.float32(radii[0]), (cos * y - sin * x) / np.float32(radii[1])


def _middle(site: Site, rng: np.random.Generator) -> NDArray[np.float64]:
    boxes = list(site.places.values())
    box = boxes[rng.integers(len(boxes))]
    return np.array([rng.uniform(*box.x), rng.uniform(*box.y)])


def _vessel(tissue: Tissue, site: Site, points: Points, rng: np.random.Generator) -> None:
    """A dark tube about as large as a lesion, with bright walls; a tube, not an ellipse, and nothing behind it."""
    size = rng.uniform(*site.lesion_mm)
    radii = (size * rng.uniform(1.5, 2.2), size * rng.uniform(0.28, 0.42))
    u, v = _tube(points, _middle(site, rng), radii, rng.uniform(-0.7, 0.7))
    bend = v + np.float32(rng.uniform(-0.6, 0.6)) * u * u
    inside = bend * bend + u**6 < 1  # round ends
    tissue.echo[inside] = -40.0
    tissue.mirror[inside] = 0.0
    tissue.flow[inside] = rng.choice((-0.9, 0.9))
    wall = (np.abs(np.abs(bend) - 1.0) < 0.25 / radii[1]) & (np.abs(u) < 1)
    tissue.mirror[wall] = 4.0


def _shadow(tissue: Tissue, site: Site, points: Points, rng: np.random.Generator) -> None:
    """A bright cap and nothing behind it, as of a rib or of gas."""
    x = rng.uniform(-0.3, 0.3) * site.width
    y = rng.uniform(0.14, 0.4) * site.depth
    half = rng.uniform(0.07, 0.14) * site.width
    dx = (points.x - np.float32(x)) / np.float32(half)
    cap = (np.abs(points.y - np.float32(y) - np.float32(0.12 * half) * dx * dx) < 0.45) & (np.abs(dx) < 1)
    tissue.mirror[cap] = 16.0
    tissue.loss[cap] += np.float32(rng.uniform(18.0, 28.0) * points.step / 0.9)


def _reverberation(tissue: Tissue, site: Site, points: Points, rng: np.random.Generator) -> None:
    """Bright bands at equal distances, fainter each time."""
    first = rng.uniform(0.1, 0.22) * site.depth
    x = rng.uniform(-0.25, 0.25) * site.width
    half = rng.uniform(0.12, 0.28) * site.width
    beside = np.clip(1.6 - 1.6 * np.abs((points.x - np.float32(x)) / np.float32(half)), 0, 1)
    for echo in range(1, 6):
        band = np.abs(points.depth - np.float32(first * (0.4 + 0.6 * echo))) < 0.3 * site.detail
        tissue.mirror[band] = np.maximum(tissue.mirror[band], (9.0 * 0.72 ** (echo - 1)) * beside[band])


def _colour_only(tissue: Tissue, site: Site, points: Points, rng: np.random.Generator) -> None:
    u, v = _tube(
        points, _middle(site, rng) + rng.normal(0, 4, 2), (rng.uniform(1.0, 4.5), rng.uniform(0.5, 1.1)),
        rng.uniform(-1.2, 1.2),
    )  # fmt: skip
    tissue.flow[u * u + v * v < 1] = rng.choice((-0.8, 0.8))


def colour_box(picture: Picture, flow: Array, probe: Probe, rng: np.random.Generator) -> None:
    """Colour Doppler: red towards the probe, blue away, inside a box with an outline; changes the picture.

    Args:
        picture: side × side × 3. `flow`: side × side, -1 to 1.
    """
    side = probe.side
    left, right = round(0.14 * side), round(0.86 * side)
    upper, lower = round(0.2 * side), round(0.88 * side)
    seen = (np.abs(flow) > 0.3) & probe.field
    seen[:upper], seen[lower:], seen[:, :left], seen[:, right:] = False, False, False, False
    speed = np.clip(np.abs(flow[seen]) + rng.normal(0, 0.12, int(seen.sum())), 0.2, 1.0)[:, None]
    towards = flow[seen][:, None] > 0
    warm = np.concatenate([130 + 125 * speed, 190 * speed**2, 10 * speed], axis=1)
    cold = np.concatenate([10 * speed, 170 * speed**2, 130 + 125 * speed], axis=1)
    picture[seen] = np.where(towards, warm, cold).astype(np.uint8)
    line = np.array(_BOX, np.uint8)
    picture[upper, left:right] = picture[lower, left:right] = line
    picture[upper:lower, left] = picture[upper:lower, right] = line


def draw_calipers(picture: Picture, probe: Probe, site: Site, rng: np.random.Generator) -> None:
    """Two pairs of crosses as of a measurement, around nothing; changes the picture."""
    centre = np.array(probe.pixel_of(*_middle(site, rng)))
    half = rng.uniform(*site.lesion_mm) / probe.pixel
    tilt = rng.uniform(-0.4, 0.4)
    arm = max(2, round(0.018 * probe.side))
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for turn, reach in ((tilt, half), (tilt + 0.5 * np.pi, 0.75 * half)):
        way = reach * np.array([np.cos(turn), np.sin(turn)])
        for share in np.linspace(-1, 1, 13):
            draw.point(tuple(np.rint(centre + share * way)), fill=_CALIPER)
        for end in (centre - way, centre + way):
            x, y = (int(value) for value in np.rint(end))
            draw.line((x - arm, y, x + arm, y), fill=_CALIPER)
            draw.line((x, y - arm, x, y + arm), fill=_CALIPER)
    picture[:] = np.asarray(image)


def draw_scale(picture: Picture, probe: Probe, site: Site) -> None:
    """A mark at the right edge for each 10 mm of depth; changes the picture."""
    long = max(2, round(0.02 * probe.side))
    for depth in range(0, int(site.depth) + 1, 10):
        row = min(probe.side - 1, max(0, round(probe.pixel_of(0.0, depth)[1])))
        picture[row, -long:] = 190
