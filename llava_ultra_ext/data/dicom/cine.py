"""Which frames of a cine are kept.

`uniform`: the middles of equal parts. `change`: the first frame, then again and again the frame that differs most from
all chosen so far (farthest-point sampling), on small grey copies; so every scene behind a cut is met, and a cine that
stands still gives one frame. Our choice, over the largest steps between neighbours, which miss a slow sweep.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from llava_ultra_ext.data.dicom.colours import Pixels
from llava_ultra_ext.data.dicom.instance import Instance

RULES = ("uniform", "change")

_SIDE = 32  # pixels of the small copies: 1 KB a frame is what a long cine takes of memory
_SAME = 1.0  # grey levels of mean difference; compression noise of a still picture is below


def choose_frames(
    instance: Instance, wanted: int, rule: str = "uniform", region: tuple[int, int, int, int] | None = None
) -> tuple[int, ...]:
    """0-based numbers of the frames to keep, rising.

    Args:
        instance: a file; `change` decodes all its frames once, `uniform` none.
        wanted: most frames, at least 1.
        rule: one of `RULES`.
        region: left, top, right, bottom of the scan; `change` does not look outside, where a clock may run.

    Raises:
        ValueError: another rule, or a number below 1.
        Refused: a frame cannot be decoded.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} for a cine's frames; allowed are {', '.join(RULES)}.")
    count = instance.shape[0]
    if rule == "uniform" or count == 1:
        return uniform(count, wanted)
    left, top, right, bottom = region or (0, 0, None, None)
    return by_change((frame[top:bottom, left:right] for frame in instance.frames()), wanted)


def uniform(count: int, wanted: int) -> tuple[int, ...]:
    """The middle frames of `wanted` equal parts of `count` frames; all frames where there are fewer.

    Raises:
        ValueError: a number below 1.
    """
    _check(wanted)
    parts = min(count, wanted)
    return tuple((2 * part + 1) * count // (2 * parts) for part in range(parts))


def by_change(frames: Iterable[Pixels], wanted: int) -> tuple[int, ...]:
    """Farthest-point sampling; fewer than `wanted` where the rest shows nothing new.

    Args:
        frames: (H, W, 3) each; gone through once, small copies are kept.
        wanted: most frames.

    Raises:
        ValueError: a number below 1.
    """
    _check(wanted)
    small = np.stack([_small(frame) for frame in frames])  # (k, 32, 32)
    chosen = [0]
    nearest = _differences(small, small[0])  # (k,) to the nearest chosen frame
    while len(chosen) < min(wanted, len(small)):
        farthest = int(nearest.argmax())
        if nearest[farthest] < _SAME:
            break
        chosen.append(farthest)
        nearest = np.minimum(nearest, _differences(small, small[farthest]))
    return tuple(sorted(chosen))


def _small(frame: Pixels) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(frame)).convert("L")
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX))


def _differences(small: np.ndarray, one: np.ndarray) -> np.ndarray:
    distance: np.ndarray = np.abs(small.astype(np.int16) - one.astype(np.int16)).mean(axis=(1, 2))
    return distance


def _check(wanted: int) -> None:
    if wanted < 1:
        raise ValueError(f"{wanted} frames of a cine wanted; at least 1.")
