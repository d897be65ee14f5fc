"""The phantom's body, sampled where a probe's beams cut it: what each point scatters, reflects, takes and flows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llava_ultra_ext.data.sources.phantom.case import Case
from llava_ultra_ext.data.sources.phantom.lesion_volume import lesion_mask, paint_lesion
from llava_ultra_ext.data.sources.phantom.points import Array, Points, Tissue
from llava_ultra_ext.data.sources.phantom.sites import SITE, SWEEP_MM, Landmark, Layer, Site

_TEXTURE_MM = 6.0  # along z, until a tissue's texture is another one


def side_of(case: Case, site: Site) -> float:
    """-1 where the anatomy is mirrored (the second place of a two-sided site), else 1."""
    if not site.two_sided:
        return 1.0
    first, second = site.places
    places = [lesion.place for lesion in case.lesions if case.site == site.key]
    place = places[0] if places else (first, second)[int(np.random.default_rng([case.seed, 2]).integers(2))]
    return -1.0 if place == second else 1.0


def sample(case: Case, frame: int, points: Points) -> Tissue:
    """What the beams of one frame meet.

    Args:
        frame: 0-based.
    """
    plan = case.frames[frame]
    site = SITE[plan.site]
    rng = np.random.default_rng([case.seed, 3, list(SITE).index(site.key)])  # one body for all frames of an organ
    side = side_of(case, site)
    used = {layer.texture for layer in site.layers} | {landmark.texture for landmark in site.landmarks} | {"streak"}
    if plan.site == case.site and any(lesion.texture == "heterogeneous" for lesion in case.lesions):
        used.add("grain")
    starts = {name: rng.random(2) for name in points.textures}
    textures = {name: _texture(points.textures[name], starts[name], plan.z) for name in sorted(used - {"plain"})}
    shape = points.x.shape
    tissue = Tissue(*(np.zeros(shape, np.float32) for _ in range(4)))
    bounds = [_boundary(layer, points, rng, plan.z) for layer in site.layers]
    for layer, bound in zip(site.layers, bounds, strict=True):
        _paint_layer(tissue, layer, bound, points, textures)
    for landmark in site.landmarks:
        _paint_landmark(tissue, landmark, points, textures, rng, plan.z, side)
    if plan.site == case.site:
        for number, lesion in enumerate(case.lesions):
            paint_lesion(tissue, lesion, points, textures, _lesion_rng(case, number), plan.z, case.detail * site.detail)
    return tissue


def lesions_cut(case: Case, frame: int, points: Points) -> NDArray[np.bool_]:
    """Samples × lines: where the beams of one frame meet a lesion.

    Args:
        frame: 0-based.
    """
    plan, cut = case.frames[frame], np.zeros(points.x.shape, bool)
    if plan.site == case.site:
        detail = case.detail * SITE[plan.site].detail
        for number, lesion in enumerate(case.lesions):
            cut |= lesion_mask(lesion, points, _lesion_rng(case, number), plan.z, detail)
    return cut


def _lesion_rng(case: Case, number: int) -> np.random.Generator:
    return np.random.default_rng([case.seed, 4, number])  # one lesion in all frames


def _texture(planes: Array, random: NDArray[np.float64], z: float) -> Array:
    """One plane of a texture, which changes slowly along z; two random numbers choose the exam's own."""
    lines = planes.shape[2] // 2
    start = int(random[0] * lines)
    turn = 0.5 * np.pi * z / _TEXTURE_MM + 2 * np.pi * random[1]
    crop = planes[:, :, start : start + lines]
    return np.float32(np.cos(turn)) * crop[0] + np.float32(np.sin(turn)) * crop[1]


def _boundary(layer: Layer, points: Points, rng: np.random.Generator, z: float) -> Array:
    """Depth in mm of a layer's top at each entry of `Points.table_x`."""
    a, b, c = rng.uniform((0.04, 0, -0.12), (0.2, 6.3, 0.12), (4, 3)).astype(np.float32).T
    waves = np.sin(a[:, None] * points.table_x + (b + c * np.float32(z))[:, None]).sum(axis=0)
    return np.asarray(layer.top + 0.5 * layer.wave * waves, np.float32)


def _paint_layer(tissue: Tissue, layer: Layer, bound: Array, points: Points, textures: dict[str, Array]) -> None:
    rows = points.rows(float(bound.min()) - 0.5, points.step * len(points.x))
    edge = slice(rows.start, points.rows(0.0, float(bound.max()) + 0.5).stop)
    below = points.depth[edge] - bound[points.column[edge]]
    deep = below >= 0
    level = np.float32(layer.echo)
    rest = slice(edge.stop, None)
    if layer.texture == "plain":
        tissue.echo[edge][deep] = level
        tissue.echo[rest] = level
    else:
        value = level + np.float32(layer.texture_db) * textures[layer.texture][rows.start :]
        np.copyto(tissue.echo[edge], value[: len(deep)], where=deep)
        tissue.echo[rest] = value[len(deep) :]
    tissue.mirror[edge][deep] = 0.0
    if layer.line:
        line = np.abs(below - 0.15) < 0.22
        tissue.mirror[edge][line] = _broken(layer.line, textures["streak"][edge][line])


def _broken(line: float, streak: Array) -> Array:
    """Amplitude of a bright line of so many dB, stronger and weaker along its way, as a fascia is."""
    return np.float32(10 ** (line / 20)) * np.clip(np.float32(0.6) + np.float32(0.4) * streak, 0.05, 1.5)


def _paint_landmark(
    tissue: Tissue,
    landmark: Landmark,
    points: Points,
    textures: dict[str, Array],
    rng: np.random.Generator,
    z: float,
    side: float,
) -> None:
    shift = rng.uniform(-0.8, 0.8, 2)
    across, deep = (float(radius) for radius in rng.uniform(0.93, 1.07) * np.array(landmark.radii))
    tilt = np.deg2rad(side * (landmark.angle + rng.uniform(-3, 3)))
    cx = side * (landmark.centre[0] + shift[0] + landmark.drift * (z - 0.5 * SWEEP_MM))
    cy = landmark.centre[1] + shift[1]
    cos, sin = np.cos(tilt), np.sin(tilt)
    part = points.window(cx, cy, np.hypot(across * cos, deep * sin) + 0.5, np.hypot(across * sin, deep * cos) + 0.5)
    x, y = points.x[part] - np.float32(cx), points.y[part] - np.float32(cy)
    u = np.float32(cos / across) * x + np.float32(sin / across) * y
    v = np.float32(cos / deep) * y - np.float32(sin / deep) * x
    reach = u * u + v * v
    inside = reach < 1.0
    level = np.float32(landmark.echo)
    if landmark.texture != "plain":
        value = level + np.float32(landmark.texture_db) * textures[landmark.texture][part]
        np.copyto(tissue.echo[part], value, where=inside)
    else:
        tissue.echo[part][inside] = level
    tissue.mirror[part][inside] = 0.0
    if landmark.loss:
        tissue.loss[part][inside] += np.float32(landmark.loss * points.step)
    tissue.flow[part][inside] = landmark.flow
    if landmark.line:
        # A wall reflects where a beam meets it straight on: above and below, less at the sides.
        wall = (reach > 1.0 - 0.4 / deep) & (reach < 1.0 + 0.6 / deep)
        facing = np.abs(v[wall]) ** 5
        if landmark.loss > 0:
            facing *= v[wall] < 0  # nothing comes back from behind gas
        mirror = tissue.mirror[part]
        mirror[wall] = np.maximum(mirror[wall], facing * _broken(landmark.line, textures["streak"][part][wall]))
