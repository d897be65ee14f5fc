"""Where a probe's beams are sampled, what they meet there, and the textures of tissue."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Points:
    """Where the beams are sampled, arrays of samples × lines.

    Args:
        x, y: mm across and down. `depth`: mm from the probe's surface, which layers follow.
        step: mm between the samples of a line.
        radius, extent: of a curved probe its radius in mm and the lines' angle in radians; of a linear one 0 and mm.
        column: of each point, its entry in a table of `table_x`.
        textures: name -> two planes (2, samples, lines × 2) of unit variance.
    """

    x: Array
    y: Array
    depth: Array
    step: float
    radius: float
    extent: float
    column: NDArray[np.intp]
    table_x: Array
    textures: dict[str, Array]

    def rows(self, low: float, high: float) -> slice:
        """The samples between two depths in mm."""
        count = self.x.shape[0]
        return slice(min(count, max(0, int(low / self.step))), max(0, min(count, int(high / self.step) + 2)))

    def window(self, x: float, y: float, half_x: float, half_y: float) -> tuple[slice, slice]:
        """Samples and lines that hold a rectangle around x, y (mm) and little more, for work on a part."""
        corners_x = np.array([x - half_x, x + half_x, x - half_x, x + half_x, np.clip(0.0, x - half_x, x + half_x)])
        corners_y = np.array([y - half_y, y - half_y, y + half_y, y + half_y, y - half_y]) + self.radius
        depth = np.hypot(corners_x, corners_y) - self.radius if self.radius else corners_y
        across = np.arctan2(corners_x, corners_y) if self.radius else corners_x
        lines = np.clip((across / self.extent + 0.5) * self.x.shape[1], 0, self.x.shape[1])
        return self.rows(float(depth.min()), float(depth.max())), slice(int(lines.min()), int(lines.max()) + 1)


@dataclass
class Tissue:
    """What the beams meet, each of samples × lines.

    Args:
        echo: dB, of the scatterers. `mirror`: amplitude of surfaces that reflect without speckle.
        loss: dB that this sample takes from all behind it. `flow`: signed speed, -1 to 1.
    """

    echo: Array
    mirror: Array
    loss: Array
    flow: Array


@lru_cache(maxsize=32)
def texture_planes(samples: int, lines: int, step: float, pitch: float, detail: float) -> dict[str, Array]:
    """Textures of unit variance for a grid, see `Points.textures`; seeded, the same in each process.

    "streak", "cloud" and "fibre" are tissue. "grain" keeps only what is finer than 1.2 mm × detail: its mean is 0.

    Args:
        step, pitch: mm between samples, and between lines at half depth.
    """
    fy = np.fft.fftfreq(samples)[:, None] / step
    fx = np.fft.rfftfreq(2 * lines)[None, :] / pitch

    def low_pass(deep: float, across: float, tilt: float = 0.0) -> NDArray[np.float64]:
        down, along = fy * np.cos(tilt) + fx * np.sin(tilt), fx * np.cos(tilt) - fy * np.sin(tilt)
        return np.asarray(np.exp(-2 * np.pi**2 * ((deep * down) ** 2 + (across * along) ** 2)))

    keep = {
        "streak": low_pass(0.35, 2.6),
        "cloud": low_pass(1.3, 1.7),
        "rising": low_pass(0.3, 2.0, 0.3),
        "falling": low_pass(0.3, 2.0, -0.3),
        "grain": low_pass(0.13 * detail, 0.2 * detail) * (np.hypot(fy, fx) > 0.85 / detail),
    }
    planes: dict[str, Array] = {}
    for number, (name, passed) in enumerate(keep.items()):
        noise = np.random.default_rng([number, 5]).standard_normal((2, samples, 2 * lines))
        smooth = np.fft.irfft2(np.fft.rfft2(noise) * passed, s=(samples, 2 * lines))
        planes[name] = (smooth / smooth.std()).astype(np.float32)
    # Bright crossing strands in softer tissue.
    strands = np.maximum(planes.pop("rising"), planes.pop("falling"))
    fibre = 0.6 * planes["cloud"] + 1.5 * np.clip(strands - 0.9, 0.0, 2.0)
    planes["fibre"] = ((fibre - fibre.mean()) / fibre.std()).astype(np.float32)
    return planes
