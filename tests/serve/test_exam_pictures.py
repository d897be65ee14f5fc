"""An exam's files become frames in memory: the right ones in the right order, and nothing that identifies."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

pydicom = pytest.importorskip("pydicom", reason="the page reads DICOM with pydicom")

from dicom_frames import local_files  # noqa: E402
from llava_ultra_ext.data.dicom.cine import uniform  # noqa: E402
from llava_ultra_ext.serve.errors import ServeError  # noqa: E402
from llava_ultra_ext.serve.exam_pictures import encoded, open_exam  # noqa: E402
from llava_ultra_ext.serve.limits import Limits  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data" / "dicom"))

from made_file import made  # noqa: E402

SHIPPED = {path.name: path for _, path in local_files()}
CINE = "examples_ybr_color.dcm"
SECRET = "WANG^XIAOMING"


def dicom(pixels: Any = None, **more: Any) -> bytes:
    """A DICOM file; by default speckle of 200 x 240 whose upper left holds a banner."""
    dataset = made(speckle() if pixels is None else pixels, **more)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def speckle(seed: int = 0) -> np.ndarray:
    picture = np.zeros((200, 240), np.uint8)
    picture[40:190, 30:220] = np.random.default_rng(seed).integers(40, 200, (150, 190))
    picture[4:16, 4:120] = 250  # the banner
    return picture


def region(left: int, top: int, right: int, bottom: int) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = 1, 1
    item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right, bottom
    return [item]


def still(value: int = 90, mode: str = "L", kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (64, 48), value).save(out, kind, **options)
    return out.getvalue()


def refused(files: list[bytes], limits: Limits | None = None) -> ServeError:
    with pytest.raises(ServeError) as caught:
        open_exam(files, limits or Limits())
    assert "/" not in str(caught.value).replace("PNG/JPEG", "") and SECRET not in str(caught.value)
    return caught.value


def test_a_cine_gives_its_frames_evenly_with_labels() -> None:
    opened = open_exam([SHIPPED[CINE].read_bytes()])
    assert [one.label for one in opened.pictures] == [f"1 · 帧 {index + 1}/30" for index in uniform(30, 8)]
    assert len({one.image.tobytes() for one in opened.pictures}) == 8
    assert all(one.cleaned for one in opened.pictures) and opened.skipped == ()


def test_what_is_shown_of_a_real_cine_is_inside_its_scan_region() -> None:
    """The same box as the ingest cuts, and the pixels of it untouched; the rest of the 240x320 picture is gone."""
    from llava_ultra_ext.data.deidentify.pixels import clean_frames
    from llava_ultra_ext.data.dicom.instance import open_instance

    instance = open_instance(SHIPPED[CINE])
    cleaned = clean_frames(np.stack(list(instance.frames(uniform(30, 8)))), instance.dataset)
    left, top, right, bottom = cleaned.box
    for one, frame in zip(open_exam([SHIPPED[CINE].read_bytes()]).pictures, cleaned.frames, strict=True):
        np.testing.assert_array_equal(np.asarray(one.image.convert("RGB")), frame[top:bottom, left:right])
        assert one.image.size != (320, 240)


def test_the_banner_is_gone() -> None:
    [by_pixels] = open_exam([dicom()]).pictures
    assert by_pixels.image.size[1] < 170 and max(by_pixels.image.getdata()) < 250
    whole = region(0, 0, 239, 199)
    [by_region] = open_exam([dicom(SequenceOfUltrasoundRegions=region(30, 40, 219, 189))]).pictures
    assert by_region.image.size == (190, 150)
    [kept] = open_exam([dicom(SequenceOfUltrasoundRegions=whole)]).pictures
    assert max(kept.image.getdata()) == 250, "the banner was in the file"


def test_nothing_of_the_header_or_the_metadata_travels() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("PatientName", SECRET)
    exif = Image.Exif()
    exif[0x010E] = SECRET
    files = [
        dicom(PatientName=SECRET, InstitutionName=SECRET, PatientID="P1"),
        still(pnginfo=text),
        still(90, "RGB", "JPEG", exif=exif, comment=SECRET.encode()),
    ]
    assert all(SECRET.encode() in file for file in files)
    opened = open_exam(files)
    assert len(opened.pictures) == 3
    for one in opened.pictures:
        assert not one.image.info and not one.image.getexif()
        assert SECRET.encode() not in encoded(one.image)
    assert SECRET not in repr(opened)


def test_a_picture_that_exif_turns_is_shown_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    [one] = open_exam([still(90, "L", "JPEG", exif=exif)]).pictures
    assert one.image.size == (48, 64)


def test_the_order_is_that_of_the_examination() -> None:
    """DICOM by series and number whatever the order of the files; stills behind, as they were given."""
    files = [
        still(10),
        dicom(speckle(1), SeriesNumber=2, InstanceNumber=1),
        dicom(speckle(2), SeriesNumber=1, InstanceNumber=10),
        still(20),
        dicom(speckle(3), SeriesNumber=1, InstanceNumber=2),
    ]
    opened = open_exam(files)
    alone = [open_exam([files[index]]).pictures[0].image.tobytes() for index in (4, 2, 1, 0, 3)]
    assert [one.image.tobytes() for one in opened.pictures] == alone
    assert [one.label for one in opened.pictures] == ["1", "2", "3", "4", "5"]


def test_modes_become_grey_or_colour() -> None:
    clear = io.BytesIO()
    Image.new("RGBA", (64, 48), (200, 10, 10, 0)).save(clear, "PNG")
    deep = io.BytesIO()
    Image.fromarray(np.full((48, 64), 4095, np.uint16)).save(deep, "PNG")
    colour = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 10, 10)).save(colour, "PNG")
    found = [one.image for one in open_exam([clear.getvalue(), deep.getvalue(), colour.getvalue()]).pictures]
    assert [one.mode for one in found] == ["L", "L", "RGB"]
    assert found[0].getpixel((0, 0)) == 0, "see-through pixels lie on black"
    assert found[1].getpixel((0, 0)) == 255, "12 bits in 16 are not black"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data[:-3000], "不完整"),
        (lambda data: data[:400], "DICOM"),
        (lambda data: b"GARBAGE" * 500, "既不是图片"),
        (lambda data: dicom(Modality="CT"), "不是超声"),
        (lambda data: dicom(np.full((200, 240), 7, np.uint8)), "扫描区域"),
        (lambda data: dicom(BurnedInAnnotation="YES"), "烧录文字"),
        (lambda data: dicom(Rows=60000, Columns=60000), "超过上限"),
        (lambda data: dicom(NumberOfFrames=500), "不完整"),
        (lambda data: dicom(NumberOfFrames=10**7), "超过上限"),
        (lambda data: still()[:60], "损坏"),
        (lambda data: b"", "既不是图片"),
    ],
)
def test_a_broken_file_is_told_in_both_languages(spoil: Any, says: str) -> None:
    error = refused([spoil(dicom(PatientName=SECRET))])
    assert error.code in ("bad_picture", "picture_too_large")
    assert says in str(error)
    assert any(letter.isascii() and letter.isalpha() for letter in str(error).replace("DICOM", ""))


def test_the_other_files_of_an_exam_stay_when_one_is_broken() -> None:
    opened = open_exam([dicom(), b"GARBAGE" * 500, still()])
    assert [one.label for one in opened.pictures] == ["1", "2"]
    [skipped] = opened.skipped
    assert skipped.startswith("第 2 个文件 (file 2)")


def test_a_bomb_is_not_decoded() -> None:
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    assert "像素太多" in str(refused([bomb]))


def test_many_frames_are_refused_before_any_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_ultra_ext.serve.exam_pictures.decode", None)
    error = refused([still()] * 500)
    assert error.code == "too_many_frames" and "500" in str(error) and "64" in str(error)


def test_limits_are_kept() -> None:
    cine = SHIPPED[CINE].read_bytes()
    assert len(open_exam([cine], Limits(frames=8)).pictures) == 8
    assert refused([cine, still()], Limits(frames=8)).code == "too_many_frames"
    assert refused([cine], Limits(request_bytes=1000)).code == "request_too_large"
    assert refused([]).code == "bad_request"


def test_pixels_are_counted_over_the_whole_exam(monkeypatch: pytest.MonkeyPatch) -> None:
    cine, most = SHIPPED[CINE].read_bytes(), 8 * 240 * 320 + 64 * 48
    assert len(open_exam([still(), cine], Limits(request_pixels=most)).pictures) == 9
    monkeypatch.setattr("llava_ultra_ext.serve.exam_pictures.decode", None)
    for files in ([still(), cine], [cine, still()], [still()] * 204):
        limits = Limits(request_pixels=most - 1, frames=500)
        error = refused(files, limits)
        assert error.code == "picture_too_large" and f"{most - 1:,}" in str(error)


def test_deflated_files_may_not_fill_the_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is small and allowed; what they inflate to is kept until the exam is open."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    dataset = made(speckle())
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    monkeypatch.setattr("llava_ultra_ext.serve.exam_pictures._INFLATED_BYTES", 3 * 200 * 240)
    assert len(open_exam([out.getvalue()] * 3).pictures) == 3
    error = refused([out.getvalue()] * 4)
    assert error.code == "request_too_large" and "inflate" in str(error)


def test_no_file_is_kept_when_the_frames_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_ultra_ext.data.ingest import exam_file

    read, real = [], exam_file.open_exam_file
    monkeypatch.setattr(exam_file, "open_exam_file", lambda *given: (read.append(1), real(*given))[1])
    assert refused([dicom()] * 20, Limits(frames=3)).code == "too_many_frames"
    assert len(read) == 4


def test_a_large_cine_is_refused_before_it_is_decoded() -> None:
    large = np.zeros((3, 3500, 3500), np.uint8)  # each frame alone would do
    assert "at most 33554432 together" in str(refused([dicom(large, NumberOfFrames=3)]))


def test_files_of_two_patients_are_no_exam() -> None:
    error = refused([dicom(PatientID="P1"), dicom(PatientID="P2")])
    assert error.code == "bad_request" and "不同的病人" in str(error) and "P1" not in str(error)
    assert len(open_exam([dicom(PatientID="P1"), dicom()]).pictures) == 2, "no id is no other id"


def test_text_that_a_reader_finds_is_blanked() -> None:
    from llava_ultra_ext.data.deidentify.pixel_text import Found

    def reader(picture: np.ndarray) -> list[Found]:
        return [Found((60, 80, 110, 95), "ZHANG SAN")] if picture[85, 80].any() else []

    whole = region(30, 40, 219, 189)
    files = [dicom(SequenceOfUltrasoundRegions=whole, PatientName="ZHANG^SAN")]
    [shown], [plain] = open_exam(files, reader=reader).pictures, open_exam(files).pictures
    box = (60 - 30, 80 - 40, 110 - 30, 95 - 40)
    assert max(shown.image.crop(box).getdata()) == 0 < max(plain.image.crop(box).getdata())


def test_every_file_that_pydicom_ships_is_frames_or_a_sentence() -> None:
    """Broken ones, other modalities, directories, text files."""
    seen = {"frames": 0, "refused": 0}
    for name, path in SHIPPED.items():
        if path.suffix in (".py", ".pyc") or path.stat().st_size > 2**21:
            continue
        try:
            assert open_exam([path.read_bytes()]).pictures
            seen["frames"] += 1
        except ServeError as error:
            assert name not in str(error)
            seen["refused"] += 1
    assert seen["frames"] >= 15 and seen["refused"] >= 100
