"""From the body to the picture: speckle, attenuation, log compression, scan conversion, colour Doppler.

Our choice, for speed: scatterers are complex Gaussians on the grid of the beams and the point spread acts on the
envelope's baseband, so a uniform tissue has Rayleigh speckle without a carrier being sampled.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import scipy.fft  # type: ignore[import-untyped]
from numpy.typing import NDArray

from llava_ultra_ext.data.sources.phantom.case import Case
from llava_ultra_ext.data.sources.phantom.cases import SIZES
from llava_ultra_ext.data.sources.phantom.overlays import add_distractors, colour_box, draw_calipers, draw_scale
from llava_ultra_ext.data.sources.phantom.points import Array
from llava_ultra_ext.data.sources.phantom.probe import Probe, probe_of
from llava_ultra_ext.data.sources.phantom.sites import SITE
from llava_ultra_ext.data.sources.phantom.volume import sample

SLICE_MM = 1.2
"""Thickness of the slice: from this far apart on, two frames share no speckle."""

COMPOUNDED = 0.15
"""Share of the power without speckle. Our choice: with less, speckle drowns spikes and grain; real pictures have it."""

_NOISE_DB = -36.0  # electronic noise at the picture's bottom, against healthy tissue
_WHITE_DB = 27.0  # what is shown white, against healthy tissue
_FINEST = 96  # smaller pictures are drawn twice as large and reduced, as a screen would


@lru_cache(maxsize=12)
def _plane(seed: int, number: int, samples: int, lines: int) -> NDArray[np.complex64]:
    # Seeds must not be negative; no sweep starts 1000 slices before 0.
    noise = np.random.default_rng([seed, 6, number + 1000]).standard_normal((samples, 2 * lines), np.float32)
    return noise.view(np.complex64) * np.float32(np.sqrt(0.5))


def scatterers(seed: int, z: float, samples: int, lines: int) -> NDArray[np.complex64]:
    """Complex Gaussian scatterers, samples × lines, of unit variance in the plane z; near planes are correlated."""
    place = z / SLICE_MM
    low = int(np.floor(place))
    turn = 0.5 * np.pi * (place - low)
    first, second = (_plane(seed, number, samples, lines) for number in (low, low + 1))
    return np.float32(np.cos(turn)) * first + np.float32(np.sin(turn)) * second


def spread(field: NDArray[np.complex64], probe: Probe) -> NDArray[np.complex64]:
    """Blur by the point spread: along the beams the same everywhere, across them wider with depth.

    Args:
        field: samples × lines.
    """
    across = scipy.fft.fft(_along(field, probe.axial), axis=1, overwrite_x=True)
    across *= probe.lateral
    return np.asarray(scipy.fft.ifft(across, axis=1, overwrite_x=True), np.complex64)


def _along(values: NDArray[Any], weights: Array) -> NDArray[Any]:
    """Weighted sums along the beams. A few shifts are faster than a product of matrices, and need no threads."""
    total = weights[0] * values
    for away in range(1, len(weights)):
        part = weights[away] * values
        total[away:] += part[:-away]
        total[:-away] += part[away:]
    return total


def envelope(case: Case, frame: int, probe: Probe, own: np.random.Generator) -> tuple[Array, Array]:
    """Amplitude before compression and signed flow, each of samples × lines.

    Args:
        frame: 0-based. `own`: the frame's own random numbers, for distractors and noise.
    """
    plan = case.frames[frame]
    tissue = sample(case, frame, probe.points)
    add_distractors(tissue, plan, probe.points, own)
    loss = np.cumsum(tissue.loss, axis=0) - tissue.loss
    gain = np.exp(np.float32(-np.log(10) / 20) * loss)
    seed = case.seed * 7 + list(SITE).index(plan.site)  # a stray frame is of another body
    scattered = gain * np.exp(np.float32(np.log(10) / 20) * tissue.echo)
    reflected = gain * tissue.mirror
    field = spread(scatterers(seed, plan.z, *gain.shape) * scattered + reflected / probe.unit, probe)
    # The machine's noise: one fixed plane rolled elsewhere in each frame, cheaper than new numbers.
    noise = np.roll(_plane(0, 0, *field.shape).ravel(), int(own.integers(field.size))).reshape(field.shape)
    rise = np.linspace(-12.0, 0.0, len(field), dtype=np.float32)[:, None]  # time gain lifts noise with depth
    field += noise * 10 ** ((rise + np.float32(_NOISE_DB)) / 20)
    return compound(field, scattered**2 + 0.4 * reflected**2, probe), tissue.flow


def compound(field: NDArray[np.complex64], power: Array, probe: Probe) -> Array:
    """Amplitude after compounding: a share of the power has no speckle, as the mean of many looks from other angles.

    Args:
        field: samples × lines, one look. `power`: what the tissue sends back on average.
    """
    mean = _along(power, probe.smooth)
    mean[:, 1:-1] = 0.5 * mean[:, 1:-1] + 0.25 * (mean[:, :-2] + mean[:, 2:])
    own = field.real**2 + field.imag**2
    return np.sqrt(np.float32(1.0 - COMPOUNDED) * own + np.float32(COMPOUNDED) * mean)


def render_frame(case: Case, frame_index: int, size: int) -> NDArray[np.uint8]:
    """The picture of one frame.

    Args:
        frame_index: 0-based place in `case.frames`.
        size: side in pixels, 64 to 512.

    Returns:
        size × size × 3, RGB.

    Raises:
        ValueError: such a frame does not exist; a size that is not allowed.
    """
    if not 0 <= frame_index < len(case.frames):
        raise ValueError(f"frame {frame_index}: {case.exam_id} has {len(case.frames)}. Give 0 to one below that.")
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size {size}: must be {SIZES[0]} to {SIZES[1]} pixels. Choose such a size.")
    if size < _FINEST:
        large = _render(case, frame_index, 2 * size)
        return large.reshape(size, 2, size, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    return _render(case, frame_index, size)


@lru_cache(maxsize=64)
def _machine(seed: int) -> tuple[float, float]:
    """Gain and range in dB, the machine's settings, the same in all frames of an exam."""
    rng = np.random.default_rng([seed, 8])
    return float(rng.uniform(-2.5, 2.5)), float(rng.uniform(50.0, 60.0))


def _render(case: Case, frame: int, side: int) -> NDArray[np.uint8]:
    plan = case.frames[frame]
    probe = probe_of(plan.site, side)
    own = np.random.default_rng([case.seed, 7, frame])
    amplitude, flow = envelope(case, frame, probe, own)
    gain, span = _machine(case.seed)
    level = 20 * np.log10(amplitude + np.float32(1e-4)) + np.float32(gain)
    level += np.linspace(2.0, -6.0, len(level), dtype=np.float32)[:, None]
    grey = np.clip((level + np.float32(span - _WHITE_DB)) * np.float32(255 / span), 0, 255)
    plane = (probe.scan @ grey.ravel()).reshape(side, side)
    picture = np.empty((side, side, 3), np.uint8)
    picture[:] = np.rint(plane)[:, :, None]
    if plan.doppler:
        colour_box(picture, (probe.scan @ flow.ravel()).reshape(side, side), probe, own)
    if "calipers" in plan.distractors:
        draw_calipers(picture, probe, SITE[plan.site], own)
    draw_scale(picture, probe, SITE[plan.site])
    return picture
