"""Where the scan lies in the picture: what is outside (name, date, hospital, scales) is neither learnt nor passed on.

1. SequenceOfUltrasoundRegions (0018,6011), PS3.3 C.8.5.5: the smallest box round all regions of tissue, flow, M-mode,
   spectrum and waveform. Our choice: the union, not the largest, since a report describes the spectrum below a duplex
   picture, or both halves of a dual one, too. Regions that together fill the whole picture say nothing.
2. Else the pixels. Our choice: of a cine, those that change (banners, scales and borders are still); of a still, or a
   cine in which almost nothing changes, those that differ from a neighbour, as speckle does everywhere and a flat
   banner only at the edges of its letters. They are counted in cells; the box goes round the largest connected patches
   of busy cells, several where a dark heart chamber or a dual picture parts the scan. Lines of text are smaller. Where
   no patch is large enough to be a scan, the box is the whole picture and says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llava_ultra_ext.data.dicom.colours import Pixels

_SCAN_FORMATS = (1, 2, 3, 4)  # Region Spatial Format (0018,6012): 2-D, M-mode, spectral, waveform; not graphics
_CELLS = 100  # across the picture; a cell is wider than the strokes of letters, narrower than the gap to the scan
_SMALLEST_CELL = 4  # pixels
_BUSY = 0.5  # of a cell's pixels
_STILL = 12  # grey levels between the darkest and the brightest value of a pixel; compression noise is below
_BLACK = 10  # grey levels; the ripples of lossy compression round white letters are below
_FLAT = 2  # grey levels between neighbours; below is no speckle
_SMALLEST = 0.03  # of the picture
_BESIDE = 0.2  # of the largest patch; a smaller one is text or a colour scale


class Box(NamedTuple):
    """Half-open pixel range: columns `left` to `right`, rows `top` to `bottom`.

    Args:
        found: `header`, `motion`, `texture`, or `whole` when nothing was found and the box is the whole picture,
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
    low = high = first.max(axis=-1)  # (H, W), the brightest sample: colour Doppler counts as tissue does
    for frame in others:
        value = frame.max(axis=-1)
        low, high = np.minimum(low, value), np.maximum(high, value)
    moving = _large_patches(high - low >= _STILL)
    if moving is not None:
        return moving._replace(found="motion")
    speckle = _large_patches(_textured(first.max(axis=-1)))
    return None if speckle is None else speckle._replace(found="texture")


def _textured(value: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(H, W): not black, and differs from the pixel to the right or below."""
    signed = value.astype(np.int16)
    mask = np.zeros(value.shape, dtype=bool)
    mask[:, :-1] = np.abs(np.diff(signed, axis=1)) >= _FLAT
    mask[:-1] |= np.abs(np.diff(signed, axis=0)) >= _FLAT
    return mask & (value >= _BLACK)


def _large_patches(mask: npt.NDArray[np.bool_]) -> Box | None:
    """The box round the largest connected patch of busy cells and those that are not much smaller."""
    from scipy import ndimage  # type: ignore[import-untyped]

    height, width = mask.shape
    cell = max(_SMALLEST_CELL, max(height, width) // _CELLS)
    rows, columns = -(-height // cell), -(-width // cell)
    padded = np.zeros((rows * cell, columns * cell), dtype=bool)
    padded[:height, :width] = mask
    busy = padded.reshape(rows, cell, columns, cell).mean(axis=(1, 3)) >= _BUSY  # (rows, columns) of cells
    busy = ndimage.binary_opening(busy, np.ones((3, 3)))  # a line of text is one or two cells high
    labels, count = ndimage.label(busy)
    sizes = np.bincount(labels.ravel(), minlength=1)[1:]
    if not count or sizes.max() * cell**2 < _SMALLEST * height * width:
        return None
    places = ndimage.find_objects(labels)
    large = [place for place, size in zip(places, sizes, strict=True) if size >= _BESIDE * sizes.max()]
    top, left = (min(place[axis].start for place in large) * cell for axis in (0, 1))
    bottom, right = (max(place[axis].stop for place in large) * cell for axis in (0, 1))
    return Box(left, top, min(width, right), min(height, bottom))
