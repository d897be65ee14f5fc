"""The real ultrasound pictures that `pydicom` and `pydicom-data` ship, as 8-bit RGB frames.

Only files that are already on the disk are looked at: pydicom's own look-up functions would try to download the rest of
its test data.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

SMALLEST_SIDE = 100  # pixels; below it a file is an icon
_SAME_PICTURE = 2.0  # grey levels of mean difference; lossy copies of one picture differ by less, cine neighbours too


@dataclass(frozen=True)
class Source:
    """One ultrasound file.

    Attributes:
        name: File name.
        package: The package that ships it.
        photometric: Photometric Interpretation (0028,0004) as stored, before our conversion to RGB.
        frames: (k, H, W, 3) RGB, in recording order.
    """

    name: str
    package: str
    photometric: str
    frames: Pixels

    @property
    def is_cine(self) -> bool:
        """More than one frame."""
        return len(self.frames) > 1


def local_files() -> list[tuple[str, Path]]:
    """(package, path) of every test file of `pydicom`, and of `pydicom-data` where it is installed; sorted by name."""
    found: list[tuple[str, Path]] = []
    for package, module, folder in (("pydicom", "pydicom", "data/test_files"), ("pydicom-data", "data_store", "data")):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            files = sorted(path for path in (Path(spec.origin).parent / folder).rglob("*") if path.is_file())
            found += [(package, path) for path in files]
    return found


def collect_sources(files: Iterable[tuple[str, Path]]) -> tuple[list[Source], list[dict[str, str]], int]:
    """Reads every usable ultrasound file once.

    Returns:
        The sources, what was skipped (`file`, `package`, `reason`), and how many files are of another modality.
    """
    sources: list[Source] = []
    skipped: list[dict[str, str]] = []
    others = 0
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    for package, path in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken on purpose, many of them; what matters ends in `skipped`
            dataset, reason = _open(path)
            if dataset is None and not reason:
                others += 1
                continue
            if dataset is not None:
                source, reason = _usable(dataset, path.name, package, sources)
                sources += [source] if source is not None else []
        if reason:
            skipped.append({"file": path.name, "package": package, "reason": reason})
    return sources, skipped, others


def to_rgb(dataset: Any) -> Pixels:
    """(k, H, W, 3) RGB of a DICOM dataset: YBR, palette, RGB and greyscale of any depth.

    Raises:
        Exception: Whatever the decoder raises for pixels that it cannot read.
    """
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    pixels = pixel_array(dataset)  # converts YBR to RGB
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        pixels = _eight_bit_palette(apply_color_lut(pixels, dataset))
    elif photometric.startswith("MONOCHROME"):
        if pixels.dtype != np.uint8:
            pixels = _stretch(apply_voi_lut(apply_modality_lut(pixels, dataset), dataset))
        pixels = 255 - pixels if photometric == "MONOCHROME1" else pixels
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    frames = pixels[None] if pixels.ndim == 3 else pixels
    return np.ascontiguousarray(frames, dtype=np.uint8)


def _open(path: Path) -> tuple[Any, str]:
    """(dataset, "") of an ultrasound file, (None, "") of another modality, (None, reason) of an unreadable file."""
    import pydicom

    try:
        dataset = pydicom.dcmread(path, force=True)
        return (dataset, "") if dataset.get("Modality") == "US" else (None, "")
    except Exception as error:
        return None, f"not readable as DICOM: {_one_line(error)}"


def _usable(dataset: Any, name: str, package: str, known: list[Source]) -> tuple[Source | None, str]:
    if min(dataset.get("Rows", 0), dataset.get("Columns", 0)) < SMALLEST_SIDE:
        return None, f"{dataset.get('Columns')}x{dataset.get('Rows')} pixels: an icon, smaller than {SMALLEST_SIDE}"
    try:
        frames = to_rgb(dataset)
    except Exception as error:
        return None, f"pixels can't be decoded: {_one_line(error)}"
    for other in known:
        if _same_picture(frames[0], other.frames[0]):
            return None, f"holds the same picture as {other.name}"
    return Source(name, package, str(dataset.PhotometricInterpretation), frames), ""


def _same_picture(first: Pixels, second: Pixels) -> bool:
    if first.shape != second.shape:
        return False
    return float(np.abs(first.astype(np.int16) - second).mean()) < _SAME_PICTURE


def _eight_bit_palette(colours: npt.NDArray[Any]) -> Pixels:
    """Palette entries to 8 bits: 16-bit tables fill the high byte, byte-swapped ones the low byte only."""
    if colours.dtype == np.uint8 or colours.max() <= 255:
        return colours.astype(np.uint8)
    return (colours >> 8).astype(np.uint8)


def _stretch(values: npt.NDArray[Any]) -> Pixels:
    low, high = float(values.min()), float(values.max())
    scaled: npt.NDArray[Any] = (values.astype(np.float32) - low) * (255.0 / max(high - low, 1e-6))
    return scaled.round().astype(np.uint8)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
