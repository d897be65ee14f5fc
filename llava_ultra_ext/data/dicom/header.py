"""The header of a DICOM file and where its pixels begin, with every check that needs no pixel decoded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llava_ultra_ext.data.dicom.refusal import Refused, refusing

ULTRASOUND = frozenset(("US", "IVUS"))
"""Modality (0008,0060) of ultrasound pictures, intravascular ones too."""

_ULTRASOUND_CLASSES = ("1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.3")
"""Storage classes of ultrasound stills, volumes and cines (PS3.4 B.5), the retired ones too, begin like this."""

_PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_NEEDED = ("SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation")
_UNDEFINED = 0xFFFFFFFF  # length of encapsulated pixels, PS3.5 A.4


@dataclass(frozen=True)
class Limits:
    """What a file may claim before anything is decoded. Our choice: well above what scanners write.

    Args:
        frame_pixels: rows times columns.
        frames: of one file.
        smallest_side: pixels; below it a file is an icon.
        inflated_bytes: of a deflated data set, which is inflated as a whole.
    """

    frame_pixels: int = 2**24
    frames: int = 10_000
    smallest_side: int = 100
    inflated_bytes: int = 2**30


@dataclass(frozen=True)
class Header:
    """A header that passed the checks.

    Args:
        dataset: everything in front of the pixels.
        transfer_syntax: its UID.
        options: pydicom's decoding options.
        pixels: where the pixels' value begins in the file, bytes; or, of a deflated data set, the value itself.
    """

    dataset: Any
    transfer_syntax: str
    options: dict[str, Any]
    pixels: int | bytes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, rows, columns)."""
        return self.options["number_of_frames"], self.options["rows"], self.options["columns"]

    @property
    def native(self) -> bool:
        """Not compressed, or only as a whole data set."""
        from pydicom.uid import UID

        return not UID(self.transfer_syntax).is_encapsulated

    @property
    def decoder(self) -> Any:
        """pydicom's, for the transfer syntax; `read_header` has seen that there is one."""
        from pydicom.pixels import get_decoder
        from pydicom.uid import UID

        return get_decoder(UID(self.transfer_syntax))


def read_header(file: Path | bytes, modalities: Collection[str], limits: Limits) -> Header:
    """Read and check.

    Raises:
        Refused: the file gives no frames.
    """
    with opened(file) as stream, refusing("broken_header", "the header cannot be read. Export the file again."):
        dataset = _dataset(stream, limits)
        _check_kind(dataset, modalities)
        syntax = _transfer_syntax(dataset)
        options = _options(dataset, limits)
        _check_decoder(syntax)
        if "PixelData" in dataset:  # deflated: read as a whole
            inflated = bytes(dataset.PixelData)
            pixels: int | bytes = inflated
            options |= {"pixel_keyword": "PixelData", "pixel_vr": dataset["PixelData"].VR}
            available = len(inflated)
            del dataset.PixelData
        else:
            pixels, available, described = _pixels(stream, dataset)
            options |= described
        _check_length(syntax, options, available)
        return Header(dataset, syntax, options, pixels)


def opened(file: Path | bytes) -> BinaryIO:
    """The file, opened; its bytes are a file in memory.

    Raises:
        Refused: `unreadable_file`.
    """
    if isinstance(file, bytes):
        return io.BytesIO(file)
    try:
        return file.open("rb")
    except OSError as error:
        raise Refused("unreadable_file", f"it cannot be opened ({error.strerror}). Check its permissions.") from None


def _dataset(stream: BinaryIO, limits: Limits) -> Any:
    """pydicom inflates a deflated data set without limit, so it is tried within one first."""
    from pydicom import dcmread
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    deflated = False
    part10 = stream.read(132)[128:] == b"DICM"  # PS3.10 7.1; older files begin with the data set
    if part10:
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        if deflated:
            most = limits.inflated_bytes
            if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(), most + 1)) > most:
                raise Refused("too_large", f"inflates to more than {most} bytes. Raise Limits.inflated_bytes.")
    stream.seek(0)
    try:
        dataset = dcmread(stream, force=True, stop_before_pixels=not deflated)
        known = any(keyword in dataset for keyword in ("SOPClassUID", "Modality", "Rows"))
    except Exception:
        if part10:
            raise
        known = False
    if not known and "MediaStorageSOPClassUID" not in (dataset.file_meta if part10 else ()):
        raise Refused("not_dicom", "it is no DICOM file. Leave it out.")
    return dataset


def _check_kind(dataset: Any, modalities: Collection[str]) -> None:
    if "Rows" not in dataset or "Columns" not in dataset:
        raise Refused("not_an_image", "it holds no picture (a report, a directory, …). Leave it out.")
    modality, storage = str(dataset.get("Modality") or ""), str(dataset.get("SOPClassUID") or "")
    if not modality and storage.startswith(_ULTRASOUND_CLASSES):
        modality = "US"
    if modalities and modality not in modalities:
        raise Refused("other_modality", f"its modality is none of {', '.join(sorted(modalities))}.")


def _transfer_syntax(dataset: Any) -> str:
    """As the file says; else by how its bytes were read (files without the header of PS3.10 have none)."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax:
        return str(syntax)
    implicit, little = dataset.original_encoding
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def _check_decoder(syntax: str) -> None:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    try:
        decoder = get_decoder(UID(syntax))
    except NotImplementedError:
        raise Refused("no_decoder", "pydicom has no decoder for its transfer syntax. Export it uncompressed.") from None
    if not decoder.is_available:
        raise Refused("no_decoder", f"{decoder.UID.name} needs a plugin: pip install llava_ultra_ext[dicom]")


def _options(dataset: Any, limits: Limits) -> dict[str, Any]:
    from pydicom.pixels import as_pixel_options

    options = as_pixel_options(dataset)
    options["number_of_frames"] = int(options["number_of_frames"])
    rows, columns, frames = int(options["rows"]), int(options["columns"]), options["number_of_frames"]
    if min(rows, columns) < limits.smallest_side:
        raise Refused("too_small", f"{columns}x{rows} pixels: an icon, smaller than {limits.smallest_side}.")
    if rows * columns > limits.frame_pixels:
        raise Refused(
            "too_large", f"{columns}x{rows} pixels; at most {limits.frame_pixels}. Raise Limits.frame_pixels."
        )
    if frames > limits.frames:
        raise Refused("too_large", f"{frames} frames; at most {limits.frames}. Raise Limits.frames.")
    if frames < 1 or any(keyword not in dataset for keyword in _NEEDED):
        raise Refused("broken_header", "it does not say how its pixels are stored. Export the file again.")
    if int(options["samples_per_pixel"]) not in (1, 3):
        raise Refused("unsupported_pixels", "neither 1 nor 3 samples a pixel. Export the file as RGB.")
    return options


def _pixels(stream: BinaryIO, dataset: Any) -> tuple[int, int, dict[str, Any]]:
    """Place and length of the pixels' value, and how it is written; the stream stands at its tag (PS3.5 7.1)."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    head = stream.read(8)
    if len(head) < 8:
        raise Refused("not_an_image", "it has rows and columns but no pixels. Export the file again.")
    group, element = struct.unpack(f"{order}HH", head[:4])
    described: dict[str, Any] = {"pixel_keyword": _PIXEL_KEYWORDS[group << 16 | element]}
    if implicit or not head[4:6].isalpha():  # some writers leave the VR out here only
        length = struct.unpack(f"{order}L", head[4:])[0]
    else:
        described["pixel_vr"] = head[4:6].decode("ascii")
        length = struct.unpack(f"{order}L", stream.read(4))[0]
    start = stream.tell()
    rest = stream.seek(0, io.SEEK_END) - start
    if length != _UNDEFINED and length > rest:
        raise Refused("broken_pixels", "the file is cut off within its pixels. Export it again.")
    return start, rest if length == _UNDEFINED else length, described


def _check_length(syntax: str, options: dict[str, Any], available: int) -> None:
    """A cut native cine gives no frames at all rather than its first ones."""
    from pydicom.uid import UID

    if UID(syntax).is_encapsulated:
        return
    samples = options["rows"] * options["columns"] * options["samples_per_pixel"] * options["number_of_frames"]
    needed = samples * options["bits_allocated"] // 8
    if options["photometric_interpretation"] == "YBR_FULL_422":
        needed = needed * 2 // 3  # two pixels share their colour, PS3.3 C.7.6.3.1.2
    if available < needed:
        raise Refused(
            "broken_pixels",
            "the frames cannot be decoded: there are fewer pixels than the header says. Export it again.",
        )
