"""Exams made by hand for the tests of pictures, and the means of parts of a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_ultra_ext.data.sources.phantom.case import Case, FramePlan, Lesion
from llava_ultra_ext.data.sources.phantom.probe import probe_of
from llava_ultra_ext.data.sources.phantom.sites import SITE

MIDDLE = 20.0
"""z of the hand-made lesion's centre, mm."""


def lesion_of(site: str, **changes: Any) -> Lesion:
    """A smooth hypoechoic lesion in the middle of the site's first place."""
    place, box = next(iter(SITE[site].places.items()))
    radius = float(np.mean(SITE[site].lesion_mm))
    plain = Lesion(
        kind="benign",
        place=place,
        centre=(float(np.mean(box.x)), float(np.mean(box.y)), MIDDLE),
        radii=(radius, 0.8 * radius, 4.0),
        echo="hypoechoic",
        margin="smooth",
        shape="regular",
        texture="homogeneous",
        calcification="none",
        posterior="none",
        flow="none",
    )
    return replace(plain, **changes)


def exam(organ: str, seed: int, *lesions: Lesion, z: tuple[float, ...] = (MIDDLE,), **plan: Any) -> Case:
    """An exam whose frames lie at z."""
    shown = {"site": organ, "doppler": False, "distractors": (), "visibility": (1.0,) * len(lesions), **plan}
    return Case("hand-made", seed, organ, lesions, tuple(FramePlan(z=place, **shown) for place in z))


def around(picture: NDArray[Any], site: str, x: float, y: float, half_x: float, half_y: float) -> NDArray[np.float64]:
    """The part of a picture around a place, all in mm, as numbers."""
    probe = probe_of(site, picture.shape[0])
    column, row = probe.pixel_of(x, y)
    across, deep = half_x / probe.pixel, half_y / probe.pixel
    return picture[
        round(row - deep) : round(row + deep) + 1, round(column - across) : round(column + across) + 1
    ].astype(float)
