"""Picture files: a cheap check of many before training, and the decoding of one during it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

PROGRESS_FROM = 2000
"""From this many files on, the check shows a progress bar."""

_TAIL = 1024  # bytes; room for the padding that some writers put behind the end marker
_END_MARKERS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}


class Fault(NamedTuple):
    """What is wrong with a picture: a short name for counting, and a sentence without the file's name."""

    reason: str
    message: str


def check_picture(path: str) -> Fault | None:
    """Look at a file's first and last bytes; decode it only when its end marker is not where it should be.

    Returns:
        None for a picture that looks whole.
    """
    try:
        size = os.path.getsize(path)
        if not os.path.isfile(path):
            return Fault("missing_picture", "is a folder, not a file. Give a picture file.")
        if size == 0:
            return Fault("empty_picture", "is an empty file (0 bytes). Export it again.")
        with open(path, "rb") as file:
            head = file.read(132)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
    except FileNotFoundError:
        return Fault("missing_picture", "does not exist below --image_folder. Check the folder and the name.")
    except OSError as error:
        return Fault("unreadable_picture", f"cannot be read ({error.strerror}). Check its permissions.")
    if head[128:132] == b"DICM":
        return Fault("dicom_picture", "is a DICOM file. Convert it to PNG and remove identifying data first.")
    return _check_format(path, tail)


def _check_format(path: str, tail: bytes) -> Fault | None:
    try:
        with Image.open(path) as picture:
            marker = _END_MARKERS.get(picture.format or "")
            if marker is not None and marker in tail:
                return None
            picture.load()  # No end marker near the end: only decoding tells a cut file from a long appendix.
            return None
    except Exception as error:  # Pillow raises anything: OSError, SyntaxError, struct.error, …
        if isinstance(error, UnidentifiedImageError):
            return Fault("not_a_picture", "is not a picture that Pillow can read. Use PNG or JPEG.")
        return Fault("truncated_picture", "is damaged or cut off. Export it again.")


def check_pictures(paths: Sequence[str], workers: int = 8) -> dict[str, Fault | None]:
    """`check_picture` for many files at once, with a progress bar from `PROGRESS_FROM` files on.

    Args:
        paths: each file once.
        workers: threads; the work is waiting for a disk or a network folder.
    """
    with ThreadPoolExecutor(max_workers=workers) as pool:
        results: Any = pool.map(check_picture, paths)
        if len(paths) > PROGRESS_FROM:
            from tqdm import tqdm

            results = tqdm(results, total=len(paths), desc="checking pictures", unit="file")
        return dict(zip(paths, results, strict=True))


def open_picture(path: str | BinaryIO) -> Image.Image:
    """Decode a picture completely; its mode is left to the image processor.

    Args:
        path: its file, by name or opened.

    Raises:
        OSError: the file is missing or cannot be decoded; the message does not hold its name.
    """
    try:
        picture: Image.Image = Image.open(path)
        with picture:
            picture.load()
        return picture
    except Exception as error:
        raise OSError(f"cannot be decoded ({type(error).__name__})") from None


def inside_folder(folder: str, name: str) -> bool:
    """Whether `name`, taken relative to `folder` as LLaVA does, stays below it; links in the folder may lead out."""
    root = Path(os.path.abspath(folder))
    return root in Path(os.path.abspath(os.path.join(folder, name))).parents
