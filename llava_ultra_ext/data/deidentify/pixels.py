"""Burned-in banners: everything outside the scan region becomes black, and what text is left inside is read.

The region is SequenceOfUltrasoundRegions (0018,6011) where it fits the picture, else it is found in the pixels.

Our choice for finding it: of a cine, where the frames differ (a banner stands still); of a still, the largest area that
is densely brighter than black and nowhere flat (text is thin, a banner's ground is flat, speckle is dense and rough).
Either is widened to its rows' and columns' spans, which keeps a fan whole and leaves the corners beside it, where text
likes to stand, black.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from llava_ultra_ext.data.deidentify.pixel_text import Found, TextReader
from llava_ultra_ext.data.deidentify.quarantine import Quarantine
from llava_ultra_ext.data.deidentify.text import clean_text
from llava_ultra_ext.data.dicom.colours import as_rgb, grey_of

Frames = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""

SMALLEST_SHARE = 0.08
"""Of the picture; a smaller area is no scan region but a logo."""

_IMAGES = (1, 2, 3, 4)  # RegionSpatialFormat: 2D, M-mode, spectral, waveform; 5 is graphics, 0 is a grey bar
_MOVES, _BRIGHT, _ROUGH = 12, 16, 2  # grey levels of 255
_CELLS = 96  # across the shorter side
_SIDE = 5  # cells; what is narrower is text
_MOST_FRAMES = 16
_MANY_DIGITS = 6


@dataclass(frozen=True)
class CleanFrames:
    """Pixels without banners.

    Args:
        frames: (k, H, W, 3) copy, black outside the scan region.
        box: the smallest box around the region; pictures are cut by it.
        rule: ``regions``, ``change`` or ``bright``: how the region was found.
        checked: whether a text reader has looked for text that was left.
        removed: kind (`audit.KINDS`) -> how often.
    """

    frames: Frames
    box: Box
    rule: str
    checked: bool
    removed: Mapping[str, int]


def region_boxes(dataset: Any, height: int, width: int) -> list[Box]:
    """The boxes of (0018,6011) that show images.

    Returns:
        Empty where there are none, or one does not fit: the picture was scaled or cut after they were written.
    """
    boxes: list[Box] = []
    try:
        for item in dataset.get("SequenceOfUltrasoundRegions") or ():
            if int(item.get("RegionSpatialFormat", 1)) not in _IMAGES:
                continue
            left, top = int(item.RegionLocationMinX0), int(item.RegionLocationMinY0)
            right, bottom = int(item.RegionLocationMaxX1), int(item.RegionLocationMaxY1)
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                return []
            boxes.append((left, top, min(right + 1, width), min(bottom + 1, height)))
    except (AttributeError, TypeError, ValueError):
        return []
    return boxes


def find_region(frames: Frames) -> tuple[Mask, str] | None:
    """The scan region by the pixels alone.

    Args:
        frames: (k, H, W, 3).

    Returns:
        (H, W) mask and the rule that found it; None where nothing is large enough.
    """
    picked = np.linspace(0, len(frames) - 1, min(len(frames), _MOST_FRAMES)).round().astype(int)
    one = grey_of(frames)
    grey = functools.reduce(np.maximum, np.moveaxis(frames[picked], -1, 0)) if one is None else one[picked]
    if len(grey) > 2:
        mask = _largest(grey.max(axis=0) - grey.min(axis=0) > _MOVES, density=0.25)
        if mask is not None:
            return mask, "change"
    mask = _largest((grey[0] > _BRIGHT) & _rough(grey[0]), density=0.5)
    return None if mask is None else (mask, "bright")


def clean_frames(
    frames: Frames, dataset: Any, known: Iterable[str] = (), reader: TextReader | None = None
) -> CleanFrames:
    """Blank everything outside the scan region, and texts inside it that identify.

    Args:
        frames: (k, H, W, 3) 8-bit RGB of one file; not changed.
        dataset: its header, for the regions and BurnedInAnnotation.
        known: names and numbers of the patient's header (`CleanHeader.names`), as burned-in text may spell them.
        reader: finds text (`pixel_text.rapid_reader`); None: not checked, and said so.

    Raises:
        Quarantine: ``pixels_unreadable``, ``no_scan_region``, ``burned_in_unchecked``, ``burned_in_text``.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise Quarantine("pixels_unreadable")
    mask, rule = _mask(frames, dataset)
    if rule != "regions" and reader is None and str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
        raise Quarantine("burned_in_unchecked")
    removed: Counter[str] = Counter()
    cleaned, box, blanked = _blacked_out(frames, mask)
    removed["pixels_blanked"] = blanked
    removed["frames_blanked"] = len(frames) if blanked else 0
    if reader is None:
        removed["text_unchecked"] = len(frames)
    else:
        cleaned = np.array(cleaned)  # a view of grey cannot be written into
        _blank_texts(cleaned, tuple(known), reader, removed)
    counts = {kind: count for kind, count in sorted(removed.items()) if count}
    return CleanFrames(cleaned, box, rule, reader is not None, counts)


def scan_box(frames: Frames, dataset: Any) -> Box:
    """Where the scan lies, without cleaning anything.

    Raises:
        Quarantine: ``no_scan_region``.
    """
    return _box(_mask(frames, dataset)[0])


def _box(mask: Mask) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _blacked_out(frames: Frames, mask: Mask) -> tuple[Frames, Box, int]:
    """A copy that is black outside the mask, the mask's box, and how many pixels that showed something are black now.

    Most is copied as one box; only what lies in it beside the mask is looked at pixel by pixel.
    """
    left, top, right, bottom = _box(mask)
    inside = (slice(None), slice(top, bottom), slice(left, right))
    grey = grey_of(frames)
    channels = frames if grey is None else grey[..., None]
    cleaned = np.zeros(channels.shape, dtype=np.uint8)
    cleaned[inside] = channels[inside]
    beside = ~mask[inside[1:]]
    if beside.any():
        cleaned[inside][:, beside] = 0
    shown = np.bitwise_or.reduce(functools.reduce(np.bitwise_or, np.moveaxis(channels, -1, 0)))  # (H, W)
    blanked = int(np.count_nonzero(shown[~mask]))
    return cleaned if grey is None else as_rgb(cleaned[..., 0]), (left, top, right, bottom), blanked


def _mask(frames: Frames, dataset: Any) -> tuple[Mask, str]:
    height, width = frames.shape[1:3]
    boxes = region_boxes(dataset, height, width)
    if boxes:
        mask = np.zeros((height, width), dtype=np.bool_)
        for left, top, right, bottom in boxes:
            mask[top:bottom, left:right] = True
        return mask, "regions"
    found = find_region(frames)
    if found is None:
        raise Quarantine("no_scan_region")
    return found


def _largest(active: Mask, density: float) -> Mask | None:
    """In cells, some hundred across: finer than that no region is cut, and full pictures would cost twenty times."""
    from scipy import ndimage  # type: ignore[import-untyped]

    cell = max(1, min(active.shape) // _CELLS)
    dense = ndimage.uniform_filter(_shares(active, cell), _SIDE) > density
    labels, count = ndimage.label(_over_square(np.logical_or, _over_square(np.logical_and, dense)))
    if not count:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: Mask = labels == sizes.argmax()
    if largest.mean() < SMALLEST_SHARE:
        return None
    spans = _spans(largest) & _spans(largest.T).T
    rows, columns = spans.shape
    pixels = np.broadcast_to(spans[:, None, :, None], (rows, cell, columns, cell)).reshape(rows * cell, columns * cell)
    return pixels[: active.shape[0], : active.shape[1]]


def _over_square(combine: np.ufunc, mask: Mask) -> Mask:
    """Each cell with those around it, `_SIDE` across; outside nothing is set. A quarter of scipy's filters' time."""
    reach, (rows, columns) = _SIDE // 2, mask.shape
    wide = np.zeros((rows + 2 * reach, columns + 2 * reach), dtype=np.bool_)
    wide[reach : reach + rows, reach : reach + columns] = mask
    down = wide[:rows].copy()
    for shift in range(1, _SIDE):
        combine(down, wide[shift : shift + rows], out=down)
    across = down[:, :columns].copy()
    for shift in range(1, _SIDE):
        combine(across, down[:, shift : shift + columns], out=across)
    return across


def _shares(active: Mask, cell: int) -> npt.NDArray[np.float32]:
    """Of each cell's pixels the share that is active."""
    return np.asarray(Image.fromarray(active.astype(np.float32)).reduce(cell))


def _rough(grey: npt.NDArray[np.uint8]) -> Mask:
    """Where a pixel differs from one beside it; a drawn ground does not, speckle does nearly everywhere."""
    rough = np.zeros(grey.shape, dtype=np.bool_)
    for here, there in ((grey[1:], grey[:-1]), (grey[:, 1:], grey[:, :-1])):
        differs = np.maximum(here, there) - np.minimum(here, there) >= _ROUGH
        rough[: differs.shape[0], : differs.shape[1]] |= differs
        rough[-differs.shape[0] :, -differs.shape[1] :] |= differs
    return rough


def _spans(region: Mask) -> Mask:
    """Each row filled between its first and its last pixel."""
    forward = np.maximum.accumulate(region, axis=1)
    backward = np.maximum.accumulate(region[:, ::-1], axis=1)[:, ::-1]
    filled: Mask = forward & backward
    return filled


def _blank_texts(frames: Frames, known: tuple[str, ...], reader: TextReader, removed: Counter[str]) -> None:
    """Of a cine the temporal median is read: what stands still is sharp in it, and it is one picture.

    Raises:
        Quarantine: ``burned_in_text``: an identifier can still be read afterwards.
    """
    for _ in range(2):
        picked = frames[np.linspace(0, len(frames) - 1, min(len(frames), 5)).round().astype(int)]
        still = np.median(picked, axis=0).astype(np.uint8) if len(frames) > 1 else frames[0]
        texts = [found for found in reader(still) if _identifies(found, known)]
        if not texts:
            return
        for found in texts:
            left, top, right, bottom = found.box
            frames[:, max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = 0
        removed["text_blanked"] += len(texts)
    if any(_identifies(found, known) for found in reader(frames[0])):
        raise Quarantine("burned_in_text")


def _identifies(found: Found, known: tuple[str, ...]) -> bool:
    """Our choice: any name, number or date by the rules of texts, a known value, or six digits in one line."""
    plain = found.text.replace(" ", "").casefold()
    parts = (part.casefold() for value in known for part in value.replace("^", " ").split() if len(part) > 1)
    if any(part in plain for part in parts) or sum(character.isdigit() for character in plain) >= _MANY_DIGITS:
        return True
    return bool(clean_text(found.text, 1, known).removed)
