"""A probe's beams: where they are sampled, how wide a point is spread, and how lines become a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len  # type: ignore[import-untyped]
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

from llava_ultra_ext.data.sources.phantom.points import Array, Points, texture_planes
from llava_ultra_ext.data.sources.phantom.sites import SITE, Site

_AXIAL_MM = 0.12  # standard deviation of the pulse, × the site's detail
_LATERAL_MM = (0.15, 0.34)  # of the beam, at the skin and at the picture's depth, × detail


@dataclass(frozen=True)
class Probe:
    """What all frames of a site and a size share.

    Args:
        points: the samples of the beams.
        axial: weights of a sample and of those 1, 2, … away from it along the beam. `smooth`: for power, of unit sum.
        lateral: samples × lines, the transfer function across the beams, wider with depth.
        unit: samples × 1, what a uniform reflector's amplitude would be after both; scatterers keep unit variance.
        scan: pixels × (samples · lines), bilinear scan conversion. `field`: pixels that a beam reaches.
        side: pixels of the square picture. `top`: y in mm of its upper edge. `pixel`: mm.
    """

    points: Points
    axial: Array
    smooth: Array
    lateral: Array
    unit: Array
    scan: csr_matrix
    field: NDArray[np.bool_]
    side: int
    top: float
    pixel: float

    def pixel_of(self, x: float, y: float) -> tuple[float, float]:
        """Column and row of a place in mm."""
        return (x / self.pixel + 0.5 * self.side, (y - self.top) / self.pixel)


@lru_cache(maxsize=24)
def probe_of(key: str, side: int) -> Probe:
    """The probe of a site for pictures of `side` pixels."""
    site = SITE[key]
    samples = next_fast_len(round(1.35 * side))
    lines = next_fast_len(round((0.8 if site.probe == "linear" else 0.72) * side))
    depth = (np.arange(samples) + 0.5) * site.depth / samples
    across = (np.arange(lines) + 0.5) / lines - 0.5
    if site.probe == "linear":
        x = np.broadcast_to(across * site.width, (samples, lines))
        y = np.broadcast_to(depth[:, None], (samples, lines))
        pitch = np.full((samples, 1), site.width / lines)
        top = -1.0
    else:
        angle = np.deg2rad(2 * across * site.half_angle)
        x = (site.radius + depth[:, None]) * np.sin(angle)
        y = (site.radius + depth[:, None]) * np.cos(angle) - site.radius
        pitch = (site.radius + depth[:, None]) * np.deg2rad(2 * site.half_angle) / lines
        top = site.radius * (np.cos(np.deg2rad(site.half_angle)) - 1.0) - 1.5
    step = site.depth / samples
    axial, lateral, unit = _spread(site, depth, step, pitch, lines)
    scan, field = _scan(site, side, top, samples, lines)
    table_x = np.linspace(-0.75 * site.width, 0.75 * site.width, 400, dtype=np.float32)
    column = np.clip(np.rint((x + 0.75 * site.width) / (1.5 * site.width) * 399), 0, 399).astype(np.intp)
    points = Points(
        x=np.ascontiguousarray(x, np.float32),
        y=np.ascontiguousarray(y, np.float32),
        depth=np.ascontiguousarray(np.broadcast_to(depth[:, None], (samples, lines)), np.float32),
        step=step,
        radius=site.radius,
        extent=site.width if site.probe == "linear" else float(np.deg2rad(2 * site.half_angle)),
        column=column,
        table_x=table_x,
        textures=texture_planes(samples, lines, step, float(np.median(pitch)), site.detail),
    )
    smooth = axial**2  # sums to 1, since the noise keeps its variance
    return Probe(points, axial, smooth, lateral, unit, scan, field, side, float(top), site.width / side)


def _spread(
    site: Site, depth: NDArray[np.float64], step: float, pitch: NDArray[np.float64], lines: int
) -> tuple[Array, Array, Array]:
    pulse = _AXIAL_MM * site.detail / step
    axial = np.exp(-0.5 * (np.arange(int(3.2 * pulse) + 2) / pulse) ** 2)
    axial /= np.sqrt(2 * (axial**2).sum() - axial[0] ** 2)
    near, far = _LATERAL_MM
    width = (near + (far - near) * depth / site.depth)[:, None] * site.detail / pitch
    lateral = np.exp(-2 * np.pi**2 * (width * np.fft.fftfreq(lines)) ** 2)
    lateral /= np.sqrt((lateral**2).mean(axis=1, keepdims=True))
    unit = (2 * axial.sum() - axial[0]) * lateral[:, :1]
    return axial.astype(np.float32), lateral.astype(np.float32), unit.astype(np.float32)


def _scan(site: Site, side: int, top: float, samples: int, lines: int) -> tuple[csr_matrix, NDArray[np.bool_]]:
    """Bilinear weights of each pixel's four samples; pixels outside the beams have none."""
    middle = (np.arange(side) + 0.5) * site.width / side
    x, y = np.meshgrid(middle - 0.5 * site.width, middle + top)
    if site.probe == "linear":
        depth, across = y, x / site.width + 0.5
    else:
        depth = np.hypot(x, y + site.radius) - site.radius
        across = np.rad2deg(np.arctan2(x, y + site.radius)) / (2 * site.half_angle) + 0.5
    row, line = depth / site.depth * samples - 0.5, across * lines - 0.5
    field = ((row > -0.5) & (row < samples - 0.5) & (line > -0.5) & (line < lines - 0.5)).ravel()
    row, line = np.clip(row, 0, samples - 1.001).ravel()[field], np.clip(line, 0, lines - 1.001).ravel()[field]
    low_row, low_line = row.astype(int), line.astype(int)
    far_row, far_line = row - low_row, line - low_line
    pixels = np.flatnonzero(field)
    corners = [
        (low_row + i, low_line + j, (far_row if i else 1 - far_row) * (far_line if j else 1 - far_line))
        for i in (0, 1)
        for j in (0, 1)
    ]
    weights = np.concatenate([weight for _, _, weight in corners]).astype(np.float32)
    columns = np.concatenate([r * lines + c for r, c, _ in corners])
    scan = csr_matrix((weights, (np.tile(pixels, 4), columns)), shape=(side * side, samples * lines))
    return scan, field.reshape(side, side)
