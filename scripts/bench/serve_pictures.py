"""Pictures that are none: cut off, damaged, too large by their header, of other formats; and DICOM with wrong lengths.

Each is known to be broken: Pillow cannot decode it to its end, its header names more pixels than are allowed, or a
length of the DICOM file contradicts the file. What a mutation leaves whole is drawn again.
"""

from __future__ import annotations

import base64
import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from llava_ultra_ext.serve.limits import FORMATS, Limits

Draw = random.Random
Made = TypeVar("Made")

NOT_PICTURES = (
    b"",
    b"\0",
    b"PK\x03\x04" + b"\0" * 60,
    b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    b"\x7fELF\x02\x01\x01" + b"\0" * 60,
    b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><image href='file:///etc/passwd'/></svg>",
    b"<html><script>alert(1)</script></html>",
    b"GIF89a",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n",
    b"P6\n8 8\n255\n" + b"\0" * 192,  # a format that Pillow reads and we do not
)


def decodes(data: bytes) -> bool:
    """Whether Pillow reads all of it, in one of the formats that are taken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.open(io.BytesIO(data), formats=FORMATS).load()
        except Exception:
            return False
    return True


def cut_off(draw: Draw, picture: bytes) -> bytes:
    """A file without its end."""
    return _until(lambda: picture[: draw.randrange(4, len(picture))], lambda data: not decodes(data))


def damaged(draw: Draw, picture: bytes) -> bytes:
    """A PNG with some bytes changed; its checksums tell."""
    png = as_format(picture, "PNG")

    def change() -> bytes:
        data = bytearray(png)
        for _ in range(draw.randrange(1, 20)):
            data[draw.randrange(8, len(data))] ^= draw.randrange(1, 256)
        return bytes(data)

    return _until(change, lambda data: not decodes(data))


def no_picture(draw: Draw, picture: bytes) -> bytes:
    """A file of another kind, or noise."""
    return draw.choice([*NOT_PICTURES, draw.randbytes(draw.randrange(1, 4096))])


def huge_header(draw: Draw, picture: bytes) -> bytes:
    """A small file whose header names more pixels than are allowed: 30,000 x 30,000 and others."""
    width, height = draw.choice([(30_000, 30_000), (65_500, 65_500), (16_385, 1_024), (4_097, 4_096)])
    assert width * height > Limits().picture_pixels
    kind = draw.choice(["PNG", "BMP", "JPEG", "GIF"])
    small = bytearray(as_format(picture, kind))
    if kind == "PNG":
        small[16:24] = struct.pack(">II", width, height)
        small[29:33] = struct.pack(">I", zlib.crc32(small[12:29]))
    elif kind == "BMP":
        small[18:26] = struct.pack("<ii", width, height)
    elif kind == "GIF":
        small[6:10] = struct.pack("<HH", width, height)
    else:
        start = next(place for place in range(len(small)) if small[place : place + 2] in (b"\xff\xc0", b"\xff\xc2"))
        small[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(small)


def broken_base64(draw: Draw, picture: bytes) -> str:
    """Text that is no base64: a foreign letter, a lost one, padding in the middle."""
    text = base64.b64encode(picture).decode()

    def change() -> str:
        place = draw.randrange(1, len(text))
        return draw.choice(
            [
                text[:place] + draw.choice("!$%*~_-\n \0é中") + text[place:],
                text[: place // 4 * 4 + 1],
                text[:place] + "=" + text[place:],
                text + "A",
            ]
        )

    return _until(change, lambda changed: not _is_base64(changed))


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def as_format(picture: bytes, kind: str) -> bytes:
    """The same pixels in another format, at most 64 pixels wide."""
    image, out = Image.open(io.BytesIO(picture)).convert("RGB"), io.BytesIO()
    image.thumbnail((64, 64))
    image.save(out, kind)
    return out.getvalue()


def dicom(frames: int = 3, side: int = 64) -> bytes:
    """A whole ultrasound file, uncompressed, explicit lengths, with its scan region."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

    file = FileDataset("", {}, preamble=b"\0" * 128)
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "2.25.1"
    file.StudyInstanceUID, file.SeriesInstanceUID, file.Modality = "2.25.2", "2.25.3", "US"
    file.Rows, file.Columns, file.NumberOfFrames = side, side, frames
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 0
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit = 7
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = side - 1, side - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.01
    file.SequenceOfUltrasoundRegions = [region]
    speckle = np.random.default_rng(0).rayleigh(60, (frames, side, side))
    file.PixelData = np.clip(speckle, 0, 255).astype(np.uint8).tobytes()
    out = io.BytesIO()
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()


def wrong_dicom(draw: Draw, picture: bytes) -> bytes:
    """A DICOM file with a length, a count or a size that the file does not have."""
    data = bytearray(dicom())
    pixels = data.index(struct.pack("<HH", 0x7FE0, 0x0010))
    length = struct.unpack_from("<I", data, pixels + 8)[0]
    kind = draw.randrange(6)
    if kind == 0:  # more pixels than follow
        struct.pack_into("<I", data, pixels + 8, draw.choice([length * 2, 0x7FFFFFFE, 0xFFFFFFFE]))
    elif kind == 1:  # no length, as compressed pixels have, and no items
        struct.pack_into("<I", data, pixels + 8, 0xFFFFFFFF)
    elif kind == 2:  # cut within the pixels
        del data[draw.randrange(pixels + 12, len(data) - 2048) :]
    elif kind == 3:  # cut before them
        del data[draw.randrange(140, pixels) :]
    elif kind == 4:  # rows or columns of 30,000
        tag = draw.choice([(0x0028, 0x0010), (0x0028, 0x0011)])
        struct.pack_into("<H", data, data.index(struct.pack("<HH", *tag)) + 8, 30_000)
    else:  # an element that ends behind the file, before the pixels
        struct.pack_into("<H", data, data.index(struct.pack("<HH", 0x0028, 0x0002)) + 6, 0xFFFE)
    return bytes(data)


BROKEN: dict[str, Callable[[Draw, bytes], bytes]] = {
    "cut off": cut_off,
    "damaged": damaged,
    "no picture": no_picture,
    "huge header": huge_header,
}
"""Kind -> what makes one of a good picture."""


def _until(make: Callable[[], Made], broken: Callable[[Made], bool]) -> Made:
    for _ in range(1000):
        if broken(made := make()):
            return made
    raise RuntimeError("a mutation left the picture whole a thousand times")


def pictures(count: int, seed: int = 0) -> Sequence[bytes]:
    """Good JPEGs to start from."""
    random_ = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        grey = np.clip(random_.rayleigh(60, (96, 128)), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(grey).convert("RGB").save(out, "JPEG", quality=85)
        made.append(out.getvalue())
    return made
