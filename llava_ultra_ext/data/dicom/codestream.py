"""The picture size that a compressed frame itself claims, read before a decoder reserves memory for it.

A frame of some bytes may claim 65535x65535 pixels whatever its data set says. Sources: ITU-T T.81 B.2.2 (JPEG frame
header), T.87 (JPEG-LS, the same layout), T.800 A.5.1 (JPEG 2000 image and tile size), also used by T.814 (HTJ2K).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_JPEG, _J2K, _JP2 = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "
_NO_FRAME_HEADER = frozenset((0xC4, 0xC8, 0xCC))  # DHT, JPG, DAC lie between the frame headers SOF0 … SOF15
_JPEG_LS = 0xF7
_STAND_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # TEM and RST0 … RST7 have no length


class Size(NamedTuple):
    """Rows and columns, pixels; samples a pixel."""

    rows: int
    columns: int
    samples: int


def claimed_size(frame: bytes) -> Size | None:
    """What a JPEG, JPEG-LS, JPEG 2000 or HTJ2K codestream claims; None when it has no readable size."""
    try:
        if frame.startswith(_JPEG):
            return _jpeg(frame)
        start = frame.find(_J2K) if frame.startswith(_JP2) else 0
        return _jpeg_2000(frame[start:]) if start >= 0 and frame.startswith(_J2K, start) else None
    except (struct.error, IndexError):
        return None


def _jpeg(frame: bytes) -> Size | None:
    """Walk the marker segments up to the frame header; each step goes forward, so it ends."""
    place = 2
    while frame[place] == 0xFF:
        code = frame[place + 1]
        if code == 0xFF or code in _STAND_ALONE:  # a fill byte is one long
            place += 1 if code == 0xFF else 2
            continue
        if code == _JPEG_LS or (0xC0 <= code <= 0xCF and code not in _NO_FRAME_HEADER):
            _, rows, columns, samples = struct.unpack_from(">BHHB", frame, place + 4)
            return Size(rows, columns, samples)
        place += 2 + max(2, struct.unpack_from(">H", frame, place + 2)[0])
    return None


def _jpeg_2000(stream: bytes) -> Size:
    right, bottom, left, top = struct.unpack_from(">4I", stream, 8)
    (samples,) = struct.unpack_from(">H", stream, 40)
    return Size(bottom - top, right - left, samples)
