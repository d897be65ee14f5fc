"""Files of one examination, as bytes in memory, become the frames that are shown and asked about.

DICOM is de-identified before anything else sees it: the header stays here, pixels outside the scan region become black
and are cut off. Of PNG, JPEG and their like only the pixels travel on: EXIF and text chunks are left behind. Nothing is
written to disk, and no message holds a file's name or a value of its header.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from llava_ultra_ext.data.deidentify.pixel_text import TextReader
from llava_ultra_ext.data.dicom.header import Limits as DicomLimits
from llava_ultra_ext.data.ingest.exam_file import ExamFile
from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.limits import Limits, decode, open_header

FRAMES_PER_CINE = 8
"""Most frames of one cine. Our choice: as many as `ingest` keeps, so that a model sees what it was trained on."""

_DECODED_PIXELS = 2**25
"""Of one file's chosen frames together. Our choice: 100 MB as RGB, twice that while it is cleaned; eight frames of
2048x2048 fit."""

_INFLATED_BYTES = 2**28
"""Of an exam's deflated files together: they stay in memory until the exam is open, and 250 KB may hold 250 MB."""

_DICOM_LIMITS = DicomLimits(inflated_bytes=_INFLATED_BYTES)
_DEFAULT_LIMITS = Limits()

_PREAMBLE = slice(128, 132)
_STILLS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")

_CHINESE = {
    "unreadable_file": "文件打不开。",
    "not_dicom": "既不是图片，也不是 DICOM 文件。",
    "broken_header": "DICOM 文件头损坏，请重新导出。",
    "not_an_image": "DICOM 文件里没有图像（可能是报告或目录）。",
    "other_modality": "不是超声图像。",
    "too_small": "图像太小，只是缩略图。",
    "too_large": "图像的像素、帧数或字节数超过上限。",
    "no_decoder": "不支持这种压缩格式，请导出为未压缩的 DICOM。",
    "unsupported_pixels": "不支持这种像素格式，请导出为 RGB。",
    "broken_pixels": "像素数据不完整或已损坏，请重新导出。",
    "no_scan_region": "找不到扫描区域，无法确认姓名等信息已去除，因此不显示。",
    "burned_in_unchecked": "文件声明图中有烧录文字，却没有可用的扫描区域，因此不显示。",
    "burned_in_text": "扫描区域内有无法去除的身份信息，因此不显示。",
    "pixels_unreadable": "像素格式异常，请重新导出。",
}
"""Reason of `Refused` or `Quarantine` -> what a reader of Chinese is told; the rest of the message is in English."""

_STILL_CHINESE = {
    "bad_picture": "图片损坏或格式不支持。",
    "picture_too_large": "图片的像素太多。",
    "request_too_large": "图片文件太大。",
}
"""Code of `open_header` and `decode` -> the same."""


@dataclass(frozen=True)
class ExamPicture:
    """One frame as it is shown and sent.

    Args:
        image: ``L`` or ``RGB``, without metadata.
        label: number of its file in the exam, and of a cine which of its frames, from 1: ``2 · 帧 5/30``.
        cleaned: of DICOM, whose banners are black; burned-in text of other pictures stays.
    """

    image: Image.Image
    label: str
    cleaned: bool


@dataclass(frozen=True)
class OpenedExam:
    """What became of an exam's files.

    Args:
        pictures: in the order of the examination, at least one.
        skipped: a sentence a file that gave none.
    """

    pictures: tuple[ExamPicture, ...]
    skipped: tuple[str, ...]


class _Dicom(NamedTuple):
    number: int  # place among the given files, from 1
    file: ExamFile
    wanted: tuple[int, ...]

    @property
    def pixels(self) -> int:
        """Of the chosen frames."""
        _, rows, columns = self.file.instance.shape
        return len(self.wanted) * rows * columns


class _Still(NamedTuple):
    number: int
    picture: Image.Image  # not yet decoded

    @property
    def pixels(self) -> int:
        """As its header says."""
        return self.picture.width * self.picture.height


def open_exam(
    files: Sequence[bytes],
    limits: Limits = _DEFAULT_LIMITS,
    frames_per_cine: int = FRAMES_PER_CINE,
    reader: TextReader | None = None,
) -> OpenedExam:
    """Frames of an exam: DICOM first, in the order of its series and numbers, then stills as they were given.

    pydicom's switches are the process's own: two exams must not be opened at the same time.

    Args:
        files: one examination; DICOM stills and cines, PNG, JPEG, WEBP, BMP, GIF, TIFF.
        limits: of one exam.
        frames_per_cine: most frames of one multi-frame file, evenly spaced.
        reader: finds text that was left in DICOM pictures; None: not looked for.

    Raises:
        ServeError: `too_many_frames`; `request_too_large`; `picture_too_large`: all together; `bad_picture`: no file
            gives a frame, the message says why of up to three; `bad_request`: no file, or files of several patients.
    """
    from pydicom.config import disable_value_validation

    _check_given(files, limits)
    with warnings.catch_warnings(), disable_value_validation():  # what is not used need not be valid
        warnings.simplefilter("ignore")  # pydicom's quote values of the header
        skipped: list[str] = []
        planned = _planned(files, limits, frames_per_cine, skipped)
        _check_patients(planned)
        pictures: list[ExamPicture] = []
        for place, entry in enumerate(planned, start=1):
            try:
                pictures += _dicom(entry, place, reader) if isinstance(entry, _Dicom) else _still(entry, place)
            except ServeError as error:
                skipped.append(_of_file(entry.number, len(files), str(error)))
    if not pictures:
        raise ServeError("bad_picture", "\n".join(skipped[:3]))
    return OpenedExam(tuple(pictures), tuple(skipped))


def encoded(image: Image.Image) -> bytes:
    """A PNG of the pixels alone, as it is sent to a worker."""
    out = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(out, "PNG", compress_level=3)
    return out.getvalue()


def _check_given(files: Sequence[bytes], limits: Limits) -> None:
    if not files:
        raise ServeError(
            "bad_request", "没有收到文件。请选择一次检查的图像。 No file was given; choose an exam's pictures."
        )
    if sum(map(len, files)) > limits.request_bytes:
        most = limits.request_bytes >> 20
        raise ServeError(
            "request_too_large",
            f"文件总计超过 {most} MB，请减少文件。 More than {most} MB together; choose fewer files.",
        )


def _planned(files: Sequence[bytes], limits: Limits, frames_per_cine: int, skipped: list[str]) -> list[_Dicom | _Still]:
    """Which frames of which file, in the exam's order; headers are read, no pixel is decoded.

    What is too much for one exam is refused at once, before more files are kept.
    """
    planned: list[_Dicom | _Still] = []
    stills = [data[_PREAMBLE] != b"DICM" and data.startswith(_STILLS) for data in files]
    frames, pixels, inflated = sum(stills), 0, 0
    _check_frames(frames, limits)
    for number, (data, is_still) in enumerate(zip(files, stills, strict=True), start=1):
        try:
            entry = _Still(number, _header(data, limits)) if is_still else _dicom_plan(number, data, frames_per_cine)
        except ServeError as error:
            skipped.append(_of_file(number, len(files), str(error)))
            continue
        pixels += entry.pixels
        if isinstance(entry, _Dicom):
            frames += len(entry.wanted)
            value = entry.file.instance.header.pixels
            inflated += len(value) if isinstance(value, bytes) else 0
            _check_frames(frames, limits)
        _check_size(pixels, inflated, limits)
        planned.append(entry)
    dicoms = sorted((one for one in planned if isinstance(one, _Dicom)), key=lambda one: one.file.order)
    return [*dicoms, *(one for one in planned if isinstance(one, _Still))]


def _dicom_plan(number: int, data: bytes, frames_per_cine: int) -> _Dicom:
    from llava_ultra_ext.data.dicom.cine import uniform
    from llava_ultra_ext.data.dicom.refusal import Refused
    from llava_ultra_ext.data.ingest.exam_file import open_exam_file

    try:
        file = open_exam_file(bytes(data), _DICOM_LIMITS)
    except Refused as refused:
        raise ServeError("bad_picture", _sentence(refused.reason, refused.message)) from None
    count, rows, columns = file.instance.shape
    entry = _Dicom(number, file, uniform(count, frames_per_cine))
    if entry.pixels > _DECODED_PIXELS:
        size = f"{len(entry.wanted)} x {columns}x{rows}"
        raise ServeError(
            "picture_too_large",
            f"{_CHINESE['too_large']} Frames of {size} pixels, at most {_DECODED_PIXELS} together.",
        )
    return entry


def _check_frames(frames: int, limits: Limits) -> None:
    if frames > limits.frames:
        raise ServeError(
            "too_many_frames",
            f"至少有 {frames} 帧，最多 {limits.frames} 帧，请减少文件。 "
            f"{frames} frames or more; at most {limits.frames}: choose fewer files.",
        )


def _check_size(pixels: int, inflated: int, limits: Limits) -> None:
    if pixels > limits.request_pixels:
        raise ServeError(
            "picture_too_large",
            f"{_STILL_CHINESE['picture_too_large']} The exam's frames have more than {limits.request_pixels:,} pixels "
            "together; choose fewer files.",
        )
    if inflated > _INFLATED_BYTES:
        most = _INFLATED_BYTES >> 20
        raise ServeError(
            "request_too_large",
            f"压缩的 DICOM 文件展开后超过 {most} MB，请减少文件。 The deflated files inflate to more than {most} MB "
            "together; choose fewer files.",
        )


def _check_patients(planned: Sequence[_Dicom | _Still]) -> None:
    if len({one.file.patient for one in planned if isinstance(one, _Dicom) and one.file.patient}) > 1:
        raise ServeError(
            "bad_request",
            "这些文件属于不同的病人，请只选一次检查。 The files are of several patients; choose one exam.",
        )


def _dicom(entry: _Dicom, place: int, reader: TextReader | None) -> list[ExamPicture]:
    from llava_ultra_ext.data.deidentify.pixels import clean_frames
    from llava_ultra_ext.data.deidentify.quarantine import REASONS, Quarantine
    from llava_ultra_ext.data.dicom.refusal import Refused

    instance, known = entry.file.instance, _identifiers(entry.file)
    count = instance.shape[0]
    try:
        cleaned = clean_frames(np.stack(list(instance.frames(entry.wanted))), instance.dataset, known, reader)
    except Refused as refused:
        raise ServeError("bad_picture", _sentence(refused.reason, refused.message)) from None
    except Quarantine as kept_back:
        raise ServeError("bad_picture", _sentence(kept_back.reason, f"It {REASONS[kept_back.reason]}")) from None
    except Exception as error:  # a broken file may raise anything, and the error's text may quote it
        raise ServeError("bad_picture", _sentence("broken_pixels", f"It failed ({type(error).__name__}).")) from None
    left, top, right, bottom = cleaned.box
    labels = [f"{place}"] if count == 1 else [f"{place} · 帧 {index + 1}/{count}" for index in entry.wanted]
    cut = (Image.fromarray(np.ascontiguousarray(frame[top:bottom, left:right])) for frame in cleaned.frames)
    return [ExamPicture(_grey_or_colour(one), label, True) for one, label in zip(cut, labels, strict=True)]


def _identifiers(file: ExamFile) -> Collection[str]:
    return sorted({*file.names, *file.numbers} - {""})


def _header(data: bytes, limits: Limits) -> Image.Image:
    with _said_in_chinese():
        return open_header(data, limits)


def _still(entry: _Still, place: int) -> list[ExamPicture]:
    with _said_in_chinese():
        picture = _eight_bits(ImageOps.exif_transpose(decode(entry.picture)))
    return [ExamPicture(_grey_or_colour(picture), f"{place}", False)]


@contextlib.contextmanager
def _said_in_chinese() -> Iterator[None]:
    try:
        yield
    except ServeError as error:
        raise ServeError(error.code, f"{_STILL_CHINESE[error.code]} {error}") from None
    except Exception as error:  # Pillow raises anything for a broken EXIF block; MemoryError ends here too
        english = f"The picture failed ({type(error).__name__}); save it as PNG."
        raise ServeError("bad_picture", f"{_STILL_CHINESE['bad_picture']} {english}") from None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """``RGB``, as the model's own processor makes it: see-through on black, deep grey scaled by its bit depth."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float32)).clip(0)
        top = float(values.max(initial=0))
        depth = next((bits for bits in (8, 10, 12, 14, 16) if top < 2**bits), 32)
        return Image.fromarray((values * (255 / (2**depth - 1))).round().astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        solid = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, (0, 0, 0, 255)), solid).convert("RGB")
    return picture.convert("RGB")


def _grey_or_colour(picture: Image.Image) -> Image.Image:
    """New pixels without any metadata; grey where no colour is shown, a third of the bytes."""
    red, green, blue = picture.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        return Image.frombytes("L", picture.size, red.tobytes())
    return Image.frombytes("RGB", picture.size, picture.tobytes())


def _sentence(reason: str, english: str) -> str:
    return f"{_CHINESE.get(reason, '文件无法使用。')} {english[:1].upper()}{english[1:]}"


def _of_file(number: int, count: int, message: str) -> str:
    return message if count == 1 else f"第 {number} 个文件 (file {number}): {message}"
