"""Exams to try without a patient: phantoms drawn on the spot, ultrasound that pydicom ships, the folder of a user."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.limits import Limits

_PHANTOMS = {
    "thyroid": (7, "甲状腺"),
    "breast": (3, "乳腺"),
    "liver": (5, "肝脏"),
}
"""Site -> seed of its exam. Our choice: few, of the sites that are asked about most."""

_PHANTOM_SIZE, _PHANTOM_FRAMES = 384, 8

_SHIPPED = {
    "examples_ybr_color.dcm": "动态 30 帧",
    "color3d_jpeg_baseline.dcm": "动态 120 帧",
    "US1_J2KR.dcm": "彩色多普勒",
}
"""pydicom's and pydicom-data's own ultrasound; those that are not installed are left out."""


@dataclass(frozen=True)
class Example:
    """One exam to try.

    Args:
        name: what the page asks for.
        title: what its button says.
        files: makes or reads its files, as they would be given by a user.
    """

    name: str
    title: str
    files: Callable[[], list[bytes]]


def examples(folder: Path | None = None, limits: Limits | None = None) -> dict[str, Example]:
    """Name -> example: phantoms where scipy is installed, pydicom's files, then the folder's.

    Args:
        folder: each file in it is an exam, each folder in it one of several files.
        limits: bound the bytes that are read of it.
    """
    found = [*_phantoms(), *_shipped(), *(_of_folder(folder, limits or Limits()) if folder is not None else ())]
    return {example.name: example for example in found}


def _phantoms() -> list[Example]:
    if importlib.util.find_spec("scipy") is None:
        return []
    return [
        Example(f"phantom-{site}", f"{name}模拟", lambda site=site, seed=seed: _phantom(site, seed))  # type: ignore[misc]
        for site, (seed, name) in _PHANTOMS.items()
    ]


def _phantom(site: str, seed: int) -> list[bytes]:
    from llava_ultra_ext.data.sources.phantom.bmode import render_frame
    from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings, draw_case

    settings = PhantomSettings(
        size=_PHANTOM_SIZE,
        min_frames=_PHANTOM_FRAMES,
        max_frames=_PHANTOM_FRAMES,
        normal=0.0,
        stray_exams=0.0,
        sites=(site,),
    )
    case = draw_case(f"phantom-{site}", seed, settings)
    return [_png(Image.fromarray(render_frame(case, frame, _PHANTOM_SIZE))) for frame in range(_PHANTOM_FRAMES)]


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _shipped() -> list[Example]:
    places = [
        Path(spec.origin).parent / folder
        for package, folder in (("pydicom", "data/test_files"), ("data_store", "data"))
        if (spec := importlib.util.find_spec(package)) is not None and spec.origin is not None
    ]
    found = []
    for name, title in _SHIPPED.items():
        file = next((place / name for place in places if (place / name).is_file()), None)
        if file is not None:
            found.append(Example(name.removesuffix(".dcm"), title, lambda file=file: [file.read_bytes()]))  # type: ignore[misc]
    return found


def _of_folder(folder: Path, limits: Limits) -> list[Example]:
    """Numbered, not named: a file's name may be a patient's."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [
        Example(f"own-{number}", f"检查 {number} exam", lambda path=path: _read(path, limits))  # type: ignore[misc]
        for number, path in enumerate(entries, start=1)
    ]


def _read(path: Path, limits: Limits) -> list[bytes]:
    files: Sequence[Path] = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if sum(file.stat().st_size for file in files) > limits.request_bytes:
        most = limits.request_bytes >> 20
        raise ServeError("request_too_large", f"这个示例超过 {most} MB。 This example has more than {most} MB.")
    return [file.read_bytes() for file in files]
