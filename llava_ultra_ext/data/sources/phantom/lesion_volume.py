"""A lesion's body: what the plane of a frame cuts of it, put into the tissue.

Fine detail (spikes of the margin, micro-calcification, grain) has no mean in dB, so that a picture reduced to 48 px
keeps little of it. Our choice: otherwise the mean brightness would tell what only detail should.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llava_ultra_ext.data.sources.phantom.case import Lesion
from llava_ultra_ext.data.sources.phantom.points import Array, Points, Tissue

ECHO_DB = {"anechoic": -42.0, "hypoechoic": -13.0, "isoechoic": -1.5, "hyperechoic": 10.0}
"""Level of a lesion in dB against the healthy organ."""

POSTERIOR_DB = {"none": 0.0, "enhancement": -7.0, "shadow": 9.0}
"""Attenuation of a lesion along its whole depth, dB beyond the tissue's."""

CALCIFIED_SHADOW_DB = 17.0
"""Attenuation of a coarse calcification."""

MICRO_DB = 21.0
"""Of a point of micro-calcification, against the lesion; the point spread takes most of it."""

_ANGLES = 1024  # entries of a lesion's outline


@dataclass(frozen=True)
class Outline:
    """A lesion's surface by angle: `lobes` as a factor of the radius, `spikes` in mm."""

    lobes: Array
    spikes: Array


def outline(lesion: Lesion, rng: np.random.Generator, detail: float) -> Outline:
    """The surface: few wide lobes if irregular, spikes of 1.1 to 1.4 mm × detail if spiculated, both without mean."""
    angle = np.linspace(-np.pi, np.pi, _ANGLES, endpoint=False)
    lobes = np.ones(_ANGLES)
    phases = rng.uniform(0, 2 * np.pi, 3)
    weights = rng.uniform(0.6, 1.0, 3) * (0.13, 0.12, 0.06)
    if lesion.shape == "irregular":
        lobes += sum(w * np.sin(n * angle + p) for w, n, p in zip(weights, (2, 3, 5), phases, strict=True))
    spikes = np.zeros(_ANGLES)
    pitch = rng.uniform(1.15, 1.35) * detail
    count = max(8, round(np.pi * sum(lesion.radii[:2]) / pitch))
    heights = rng.uniform(1.1, 1.4, count) * detail
    start = rng.uniform(0, 1)
    if lesion.margin == "spiculated":
        turn = (angle / (2 * np.pi) + start) % 1.0 * count
        spikes = heights[turn.astype(int) % count] * (1.0 - 2.0 * np.abs(turn % 1.0 - 0.5)) ** 1.3
        spikes -= spikes.mean()
    return Outline(lobes.astype(np.float32), spikes.astype(np.float32))


@dataclass(frozen=True)
class _Cut:
    """The points near a lesion in the plane z: flat places, mm from its centre, mm to its edge (inside below 0).

    `reach` is 1 on the ellipsoid's largest cross-section; `rim` is `edge` without spikes.
    """

    at: NDArray[np.intp]
    dx: Array
    dy: Array
    reach: Array
    edge: Array
    rim: Array
    scale: float


def _cut(lesion: Lesion, points: Points, rng: np.random.Generator, z: float, detail: float) -> _Cut | None:
    share = 1.0 - ((z - lesion.centre[2]) / lesion.radii[2]) ** 2
    surface = outline(lesion, rng, detail)
    if share <= 0:
        return None
    scale = float(np.sqrt(share))
    far = [1.35 * scale * radius + 1.6 * detail for radius in lesion.radii[:2]]
    rows, lines = points.window(*lesion.centre[:2], *far)
    at = np.arange(points.x.size).reshape(points.x.shape)[rows, lines].ravel()
    dx = (points.x[rows, lines] - np.float32(lesion.centre[0])).ravel()
    dy = (points.y[rows, lines] - np.float32(lesion.centre[1])).ravel()
    u, v = dx / np.float32(lesion.radii[0]), dy / np.float32(lesion.radii[1])
    distance = np.hypot(dx, dy) + np.float32(1e-4)
    reach = np.hypot(u, v) + np.float32(1e-5)
    turn = ((np.arctan2(v, u) + np.pi) * (_ANGLES / (2 * np.pi))).astype(np.intp) % _ANGLES
    rim = distance - distance / reach * scale * surface.lobes[turn]
    edge = rim - surface.spikes[turn] * min(1.0, 1.3 * scale)
    return _Cut(at, dx, dy, reach, edge.astype(np.float32), rim.astype(np.float32), scale)


def lesion_mask(lesion: Lesion, points: Points, rng: np.random.Generator, z: float, detail: float) -> NDArray[np.bool_]:
    """Samples × lines: what `paint_lesion` with the same arguments fills."""
    mask = np.zeros(points.x.shape, bool)
    cut = _cut(lesion, points, rng, z, detail)
    if cut is not None:
        mask.ravel()[cut.at[cut.edge < 0]] = True
    return mask


def paint_lesion(
    tissue: Tissue,
    lesion: Lesion,
    points: Points,
    textures: dict[str, Array],
    rng: np.random.Generator,
    z: float,
    detail: float,
) -> None:
    """Put what the plane z cuts of a lesion into the tissue.

    Args:
        textures: name -> samples × lines; "grain" is what a heterogeneous lesion shows.
        rng: the lesion's own, the same in each frame. `detail`: see `sites.Site.detail`.
    """
    cut = _cut(lesion, points, rng, z, detail)
    if cut is None:
        return
    inside = cut.edge < 0
    echo, mirror, loss, flow = (array.ravel() for array in (tissue.echo, tissue.mirror, tissue.loss, tissue.flow))
    if lesion.echo == "isoechoic":
        # A thin dark rim, or nobody could find it.
        echo[cut.at[(cut.edge >= 0) & (cut.edge < 0.55 * detail)]] -= 7.0
    mine = cut.at[inside]
    level = np.full(len(mine), ECHO_DB[lesion.echo], np.float32)
    if lesion.texture == "heterogeneous":
        # Of both signs alike, but blurring lifts the dark ones; the constant is measured.
        grain = textures["grain"].ravel()[mine]
        level += np.float32(12.0) * np.tanh(np.float32(1.4) * grain) - np.float32(3.1)
    echo[mine] = level
    mirror[mine] = 0.0
    flow[mine] = 0.0
    # The whole depth adds up to the stated amount; shrinking cuts act less.
    loss[mine] += POSTERIOR_DB[lesion.posterior] * points.step / (2.0 * lesion.radii[1])
    if lesion.echo == "anechoic":
        wall = (np.abs(cut.edge) < 0.2) & (np.abs(cut.dy) > 0.8 * np.abs(cut.dx))
        mirror[cut.at[wall]] = 4.0
    if lesion.calcification == "micro":
        _micro(echo, mirror, cut, lesion, rng, detail)
    elif lesion.calcification == "coarse":
        _coarse(mirror, loss, cut, lesion, rng, points.step, detail)
    _vessels(flow, cut, lesion, rng, detail)


def _micro(echo: Array, mirror: Array, cut: _Cut, lesion: Lesion, rng: np.random.Generator, detail: float) -> None:
    """Bright points of 0.4 mm × detail without a shadow, each in a darker ring that keeps the mean."""
    # On a spiral by the golden angle they keep apart, so that each stays a point.
    count = int(rng.integers(7, 11))
    turn = 2.4 * np.arange(count) + rng.uniform(0, 2 * np.pi) + rng.uniform(-0.3, 0.3, count)
    reach = 0.8 * np.sqrt((np.arange(count) + rng.uniform(0.2, 0.8, count)) / count) * cut.scale
    x, y = (reach * np.cos(turn) * lesion.radii[0], reach * np.sin(turn) * lesion.radii[1])
    away = np.hypot(cut.dx[:, None] - x.astype(np.float32), cut.dy[:, None] - y.astype(np.float32)).min(axis=1)
    inside = cut.edge < 0
    echo[cut.at[inside & (away < 0.65 * detail)]] -= 5.0
    mirror[cut.at[inside & (away < 0.2 * detail)]] = 10 ** ((ECHO_DB[lesion.echo] + MICRO_DB) / 20)


def _coarse(
    mirror: Array, loss: Array, cut: _Cut, lesion: Lesion, rng: np.random.Generator, step: float, detail: float
) -> None:
    """A bright arc, open downwards, with a shadow."""
    radius = min(1.3 * detail, 0.36 * min(lesion.radii[:2])) * min(1.0, 1.2 * cut.scale)
    x, y = rng.uniform(-0.25, 0.25, 2) * lesion.radii[:2] * cut.scale
    dx, dy = cut.dx - np.float32(x), cut.dy - np.float32(y)
    thick = 0.26 * detail
    arc = (np.abs(np.hypot(dx, dy) - radius) < thick) & (dy < 0.1 * radius) & (cut.edge < 0)
    mirror[cut.at[arc]] = 14.0
    loss[cut.at[arc]] += CALCIFIED_SHADOW_DB * step / (2 * thick)


def _vessels(flow: Array, cut: _Cut, lesion: Lesion, rng: np.random.Generator, detail: float) -> None:
    phase = rng.uniform(0, 2 * np.pi, 3)
    sign = float(rng.choice((-1.0, 1.0)))
    angle = np.arctan2(cut.dy, cut.dx)
    if lesion.flow == "peripheral":
        seen = (np.abs(cut.rim) < 0.5 * detail) & (np.sin(3 * angle + phase[0]) > 0.0)
        value = sign * np.sin(angle + phase[1])
    elif lesion.flow == "internal":
        # Two short bent branches, so that most of the inside stays to be seen.
        turn = phase[0] + np.array([0.0, 2.2])
        x = 0.4 * cut.scale * lesion.radii[0] * np.cos(turn)
        y = 0.4 * cut.scale * lesion.radii[1] * np.sin(turn)
        seen = np.zeros(len(cut.dx), bool)
        for bx, by, tilt in zip(x, y, phase[1:], strict=True):
            u, v = cut.dx - np.float32(bx), cut.dy - np.float32(by)
            along, off = u * np.cos(tilt) + v * np.sin(tilt), v * np.cos(tilt) - u * np.sin(tilt)
            branch = (along / (1.3 * detail)) ** 2 + ((off - 0.12 / detail * along**2) / (0.45 * detail)) ** 2 < 1
            seen |= branch & (cut.edge < -0.3 * detail)
        value = sign * np.sin(0.7 / detail * (cut.dx - cut.dy) + phase[2])
    else:
        return
    flow[cut.at[seen]] = (np.sign(value) * (0.55 + 0.45 * np.abs(value)))[seen]
