"""The real ultrasound pictures that `pydicom` and `pydicom-data` ship, as 8-bit RGB frames.

Only files that are already on the disk are looked at: pydicom's own look-up functions would try to download the rest of
its test data.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava_ultra_ext.data.dicom.colours import Pixels
from llava_ultra_ext.data.dicom.header import Limits
from llava_ultra_ext.data.dicom.instance import open_instance
from llava_ultra_ext.data.dicom.refusal import Refused

SMALLEST_SIDE = 100  # pixels; below it a file is an icon
_NO_ULTRASOUND = ("other_modality", "not_an_image", "not_dicom")
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
    for package, path in files:
        try:
            instance = open_instance(path, limits=Limits(smallest_side=SMALLEST_SIDE))
            frames = np.stack(list(instance.frames()))
        except Refused as refused:
            if refused.reason in _NO_ULTRASOUND:
                others += 1
            else:
                skipped.append({"file": path.name, "package": package, "reason": refused.message})
            continue
        same = next((other for other in sources if _same_picture(frames[0], other.frames[0])), None)
        if same is not None:
            skipped.append({"file": path.name, "package": package, "reason": f"holds the same picture as {same.name}"})
            continue
        sources.append(Source(path.name, package, str(instance.dataset.PhotometricInterpretation), frames))
    return sources, skipped, others


def _same_picture(first: Pixels, second: Pixels) -> bool:
    if first.shape != second.shape:
        return False
    return float(np.abs(first.astype(np.int16) - second).mean()) < _SAME_PICTURE
