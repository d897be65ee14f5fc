"""A decoded frame of any depth and photometric interpretation as 8-bit RGB, the way a viewer shows it (PS3.3 C.7.6.3).

MONOCHROME goes through the modality LUT and the VOI LUT or window (PS3.3 C.11.1, C.11.2), whose range is spread over
0 to 255; palettes through their tables. YBR has become RGB in the decoder.

Our choice, where the data set says no window: 8 stored bits are shown as they are; more are spread from the frame's
smallest to its largest value, each frame alone, so that a frame does not depend on which others were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_ultra_ext.data.dicom.refusal import Refused

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) RGB of one frame, or (k, H, W, 3) of several."""

_Raw = npt.NDArray[Any]


def shown(dataset: Any) -> Callable[[_Raw], Pixels]:
    """How frames of a data set are shown; its tables are read once for all frames.

    Args:
        dataset: the header.

    Returns:
        A function of a decoded frame, (H, W) or (H, W, 3), that gives (H, W, 3) RGB.

    Raises:
        Refused: `unsupported_pixels`: no rule for the photometric interpretation.
        Exception: what pydicom raises for a broken palette.
    """
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    stored = int(dataset.get("BitsStored", 0) or dataset.get("BitsAllocated", 8))
    if photometric == "PALETTE COLOR":
        return _palette(dataset)
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        return lambda frame: _grey(frame, dataset, stored, inverted=photometric == "MONOCHROME1")
    if photometric.startswith("YBR_") or photometric == "RGB":
        return lambda frame: _colour(frame, stored)
    raise Refused(
        "unsupported_pixels",
        "the photometric interpretation is none of MONOCHROME1, MONOCHROME2, PALETTE COLOR, RGB, YBR_*. "
        "Export the file as RGB.",
    )


def as_rgb(grey: Pixels) -> Pixels:
    """Grey (…, H, W) as (…, H, W, 3): a read-only view whose channels are one, so that nothing is copied."""
    return np.broadcast_to(grey[..., None], (*grey.shape, 3))


def grey_of(frames: Pixels) -> Pixels | None:
    """The channel behind a view of `as_rgb`; None for any other array, grey or not."""
    return frames[..., 0] if frames.strides[-1] == 0 else None


def stacked(frames: Iterable[Pixels]) -> Pixels:
    """Frames (H, W, 3) as (k, H, W, 3); views of `as_rgb` stay one.

    Raises:
        ValueError: there are none.
    """
    listed = list(frames)
    greys = [grey for frame in listed if (grey := grey_of(frame)) is not None]
    return as_rgb(np.stack(greys)) if greys and len(greys) == len(listed) else np.stack(listed)


def _colour(frame: _Raw, stored: int) -> Pixels:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype.kind not in "ui":
        raise Refused("unsupported_pixels", "a colour frame without three whole-number samples. Export it as RGB.")
    return np.ascontiguousarray(frame if stored <= 8 else frame >> (stored - 8), dtype=np.uint8)


def _palette(dataset: Any) -> Callable[[_Raw], Pixels]:
    """16-bit tables fill the high byte; those that were byte-swapped, or hold 8-bit values, the low byte only."""
    from pydicom.pixels import apply_color_lut

    depth = 16 if int(dataset.BitsAllocated) > 8 else 8
    table = np.asarray(apply_color_lut(np.arange(2**depth, dtype=f"u{depth // 8}"), dataset))[:, :3]
    if table.dtype != np.uint8 and table.max() > 255:
        table = table >> 8
    colours = table.astype(np.uint8)
    return lambda frame: colours[frame.astype(f"u{depth // 8}", copy=False)]


def _grey(frame: _Raw, dataset: Any, stored: int, *, inverted: bool) -> Pixels:
    if frame.ndim != 2:
        raise Refused("unsupported_pixels", "a MONOCHROME frame with several samples a pixel. Export it as RGB.")
    windowed = _windowed(frame, dataset)
    if windowed is not None:
        grey = windowed
    elif frame.dtype == np.uint8 and stored == 8:
        grey = frame
    elif stored < 8 and frame.dtype.kind == "u":
        grey = _spread(frame, 0, 2**stored - 1)
    else:
        from pydicom.pixels import apply_modality_lut

        values = np.nan_to_num(apply_modality_lut(frame, dataset))
        grey = _spread(values, float(values.min()), float(values.max()))
    return as_rgb(np.subtract(255, grey, dtype=np.uint8) if inverted else grey)


def _windowed(frame: _Raw, dataset: Any) -> Pixels | None:
    """None without a VOI LUT or window, and with one that pydicom refuses: then the frame is shown without it."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    if "VOILUTSequence" not in dataset and "WindowWidth" not in dataset:
        return None
    try:
        values = apply_voi_lut(apply_modality_lut(frame, dataset), dataset)
        low, high = _window_range(dataset)
    except Exception:  # a width below 1, a table without data, text in place of a number
        return None
    return _spread(values, low, high)


def _window_range(dataset: Any) -> tuple[float, float]:
    """The smallest and the largest value that `apply_voi_lut` gives (PS3.3 C.11.2.1.1 and C.11.2.1.2)."""
    if "VOILUTSequence" in dataset:
        return 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    if "ModalityLUTSequence" in dataset:
        return 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    stored, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation", 0) or 0)
    ends = (-(2.0 ** (stored - 1)), 2.0 ** (stored - 1) - 1) if signed else (0.0, 2.0**stored - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)
    low, high = sorted(slope * end + intercept for end in ends)
    return low, high


def _spread(values: _Raw, low: float, high: float) -> Pixels:
    """`low` to 0 and `high` to 255; NaN and what lies outside are cut off."""
    scaled = (values.astype(np.float32) - low) * (255.0 / max(high - low, 1e-6))
    clipped: Pixels = np.clip(np.nan_to_num(scaled).round(), 0, 255).astype(np.uint8)
    return clipped
