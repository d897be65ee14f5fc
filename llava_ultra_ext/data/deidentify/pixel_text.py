"""Text in pictures, by RapidOCR where it is installed: its wheel holds its weights, so it reads offline."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Found:
    """A line of text. Args: box: left, top, right, bottom in pixels; text: as read."""

    box: tuple[int, int, int, int]
    text: str


TextReader = Callable[[npt.NDArray[np.uint8]], list[Found]]
"""(H, W, 3) RGB -> the lines of text in it."""


def rapid_reader() -> TextReader | None:
    """The reader of this process; None where llava_ultra_ext[ocr] is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("rapidocr", "onnxruntime")):
        return None
    return _reader()


@cache
def _reader() -> TextReader:
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "critical"})
    logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)  # it logs what it reads when it fails

    def read(picture: npt.NDArray[np.uint8]) -> list[Found]:
        result = engine(np.ascontiguousarray(picture[..., ::-1]), use_cls=False)  # BGR; banners stand upright
        if result.boxes is None or result.txts is None:
            return []
        found = []
        for corners, text in zip(result.boxes, result.txts, strict=True):
            low, high = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
            found.append(Found((int(low[0]), int(low[1]), int(high[0]), int(high[1])), str(text)))
        return found

    return read
