"""Where the scan lies in the picture: what is outside (name, date, hospital, scales) is neither learnt nor passed on.

1. SequenceOfUltrasoundRegions (0018,6011), PS3.3 C.8.5.5: the smallest box round all regions of tissue, flow, M-mode,
   spectrum and waveform. Our choice: the union, not the largest, since a report describes the spectrum below a duplex
   picture, or both halves of a dual one, too. Regions that together fill the whole picture say nothing.
2. Else the pixels. Our choice: of a cine, those that change (banners, scales and borders are still); of a still, or a
   cine in which almost nothing changes, those that are not dark. They are counted in cells, and the largest connected
   patch of busy cells is the scan: letters are thin and stand apart. A patch too small to be a scan is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llava_ultra_ext.data.dicom.colours import Pixels

_SCAN_FORMATS = (1, 2, 3, 4)  # Region Spatial Format (0018,6012): 2-D, M-mode, spectral, waveform; not graphics
_CELL = 8  # pixels; wider than the strokes of a banner's letters, narrower than the gap to the scan
_BUSY = 0.4  # of a cell's pixels
_DARK = 20  # grey levels; black with the noise of lossy compression is below
_STILL = 12  # grey levels between the darkest and the brightest value of a pixel; compression noise is below
_SMALLEST = 0.03  # of the picture


class Box(NamedTuple):
    """Half-open pixel range: columns `left` to `right`, rows `top` to `bottom`.

    Args:
        found: `header`, `motion`, `brightness`, or `whole` when nothing was found and the box is the whole picture,
            so that a banner may be inside.
    """

    left: int
    top: int
    right: int
    bottom: int
    found: str = ""

    def cut(self, frame: Pixels) -> Pixels:
        """The part of a (H, W, 3) or (k, H, W, 3) array that lies inside, without copying."""
        return frame[..., self.top : self.bottom, self.left : self.right, :]


def scan_region(dataset: Any, frames: Iterable[Pixels]) -> Box:
    """The scan's box in every frame of a file.

    Args:
        dataset: the header.
        frames: (H, W, 3) each, at least one, of one size. A cine's should be spread over it; they are gone through
            once and not kept. Only the first is looked at when the header says where the scan is.

    Raises:
        ValueError: no frames.
    """
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        raise ValueError("scan_region needs at least one frame of the file.")
    height, width = first.shape[:2]
    return _from_header(dataset, height, width) or _from_pixels(first, remaining) or Box(0, 0, width, height, "whole")


def _from_header(dataset: Any, height: int, width: int) -> Box | None:
    boxes = [box for region in dataset.get("SequenceOfUltrasoundRegions") or () if (box := _region(region))]
    if not boxes:
        return None
    left, top = max(0, min(box.left for box in boxes)), max(0, min(box.top for box in boxes))
    right, bottom = min(width, max(box.right for box in boxes)), min(height, max(box.bottom for box in boxes))
    area = max(0, right - left) * max(0, bottom - top)
    if area < _SMALLEST * height * width or area == height * width:
        return None
    return Box(left, top, right, bottom, "header")


def _region(region: Any) -> Box | None:
    """The corners are inside (0018,6018 to 0018,601E), so the ends are one further; None for graphics and nonsense."""
    try:
        if int(region.get("RegionSpatialFormat", 1)) not in _SCAN_FORMATS:
            return None
        left, top = int(region.RegionLocationMinX0), int(region.RegionLocationMinY0)
        right, bottom = int(region.RegionLocationMaxX1), int(region.RegionLocationMaxY1)
    except (AttributeError, TypeError, ValueError):
        return None
    return Box(left, top, right + 1, bottom + 1) if left < right and top < bottom else None


def _from_pixels(first: Pixels, others: Iterable[Pixels]) -> Box | None:
    low = high = first.max(axis=-1)  # (H, W), the brightest sample: colour Doppler on black is not dark
    for frame in others:
        value = frame.max(axis=-1)
        low, high = np.minimum(low, value), np.maximum(high, value)
    moving = _largest_patch(high - low >= _STILL)
    if moving is not None:
        return moving._replace(found="motion")
    bright = _largest_patch(high >= _DARK)
    return None if bright is None else bright._replace(found="brightness")


def _largest_patch(mask: npt.NDArray[np.bool_]) -> Box | None:
    """The box round the largest connected patch of busy cells."""
    from scipy import ndimage

    height, width = mask.shape
    rows, columns = -(-height // _CELL), -(-width // _CELL)
    padded = np.zeros((rows * _CELL, columns * _CELL), dtype=bool)
    padded[:height, :width] = mask
    busy = padded.reshape(rows, _CELL, columns, _CELL).mean(axis=(1, 3)) >= _BUSY  # (rows, columns) of cells
    labels, count = ndimage.label(busy)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    vertical, horizontal = ndimage.find_objects(labels)[int(sizes.argmax())]
    if sizes.max() * _CELL**2 < _SMALLEST * height * width:
        return None
    left, right = horizontal.start * _CELL, min(width, horizontal.stop * _CELL)
    top, bottom = vertical.start * _CELL, min(height, vertical.stop * _CELL)
    return Box(left, top, right, bottom)
