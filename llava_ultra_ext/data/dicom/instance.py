"""One DICOM image: checked by its header when opened, then decoded frame after frame.

Memory: the header, one encoded and one decoded frame, however long the cine is. Only a deflated data set, which has no
other way, is held as a whole, within `Limits.inflated_bytes`.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from llava_ultra_ext.data.dicom.codestream import claimed_size
from llava_ultra_ext.data.dicom.colours import Pixels, shown
from llava_ultra_ext.data.dicom.header import ULTRASOUND, Header, Limits, opened, read_header
from llava_ultra_ext.data.dicom.refusal import Refused, refusing

_RLE = "1.2.840.10008.1.2.5"
_SLACK = 4096  # bytes; tables of a compressed frame of a few pixels
_DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Instance:
    """An image that passed the checks of its header.

    Args:
        file: where it lies, or its bytes.
        header: what was read of it.
    """

    file: Path | bytes = field(repr=False)
    header: Header

    @property
    def dataset(self) -> Any:
        """The pydicom data set, without pixels."""
        return self.header.dataset

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, rows, columns)."""
        return self.header.shape

    def frames(self, indices: Collection[int] | None = None) -> Iterator[Pixels]:
        """Decode frames one by one, in recording order.

        Args:
            indices: 0-based numbers of the frames wanted; None: all. Compressed frames between them are passed over
                without decoding.

        Yields:
            (rows, columns, 3) RGB.

        Raises:
            Refused: `broken_pixels`, `unsupported_pixels` or `too_large`, at the first frame that is so.
            IndexError: a number that the file does not have.
        """
        count = self.shape[0]
        wanted = list(range(count)) if indices is None else sorted(set(indices))
        if not wanted:
            return
        if not 0 <= wanted[0] <= wanted[-1] < count:
            raise IndexError(f"frames {wanted[0]} to {wanted[-1]} wanted; the file has 0 to {count - 1}.")
        with refusing("unsupported_pixels", "its colours cannot be read. Export the file as RGB."):
            show = shown(self.dataset)
        with self._pixels() as stream:
            decoded = _native(self.header, stream, wanted) if self.header.native else _compressed(self, stream, wanted)
            for _ in wanted:
                with refusing("broken_pixels", "a frame cannot be decoded. Export the file again."):
                    frame = show(next(decoded))
                yield frame

    def _pixels(self) -> BinaryIO:
        """The file at its pixels' value."""
        if isinstance(self.header.pixels, bytes):
            return io.BytesIO(self.header.pixels)
        stream = opened(self.file)
        stream.seek(self.header.pixels)
        return stream


def open_instance(
    file: str | Path | bytes, modalities: Collection[str] = ULTRASOUND, limits: Limits = _DEFAULT_LIMITS
) -> Instance:
    """Read a header and check it; no pixel is decoded and the file is closed again.

    Args:
        file: the file, or its bytes where none may be written.
        modalities: of Modality (0008,0060); empty: any. A file without one counts as ultrasound by its storage class.
        limits: what it may claim.

    Raises:
        Refused: it gives no frames; its `reason` is a key of `refusal.REASONS`.
    """
    place = file if isinstance(file, bytes) else Path(file)
    return Instance(place, read_header(place, modalities, limits))


def _native(header: Header, stream: BinaryIO, wanted: list[int]) -> Iterator[Any]:
    for frame, _ in header.decoder.iter_array(stream, indices=wanted, **header.options):
        yield frame


def _compressed(instance: Instance, stream: BinaryIO, wanted: list[int]) -> Iterator[Any]:
    from pydicom.encaps import encapsulate, generate_frames

    header, count = instance.header, instance.shape[0]
    one = {**header.options, "number_of_frames": 1}
    offsets = one.pop("extended_offsets", None)
    encoded = generate_frames(stream, number_of_frames=count, extended_offsets=offsets)
    chosen = frozenset(wanted)
    for index in range(wanted[-1] + 1):
        frame = next(encoded, None)
        if frame is None:
            raise Refused("broken_pixels", f"{index} of {count} frames are there. Export the file again.")
        if index in chosen:
            _check_encoded(header, frame)
            yield header.decoder.as_array(encapsulate([frame]), index=0, **one)[0]


def _check_encoded(header: Header, frame: bytes) -> None:
    """A decoder reserves what the frame claims. RLE claims nothing and grows by 64 at most (PS3.5 G.3)."""
    _, rows, columns = header.shape
    if len(frame) > 4 * rows * columns * header.options["samples_per_pixel"] + _SLACK:
        raise Refused("too_large", "a compressed frame is larger than its pixels. Export the file again.")
    if header.transfer_syntax == _RLE:
        return
    claimed = claimed_size(frame)
    if claimed is None or (claimed.rows, claimed.columns) != (rows, columns):
        raise Refused("broken_pixels", "a compressed frame has another size than the data set. Export the file again.")
