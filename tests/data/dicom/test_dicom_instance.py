"""Limits, cut files, colours and windows, on files with known pixels."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="llava_ultra_ext[dicom] is not installed")

from made_file import made, write
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from llava_ultra_ext.data.dicom.codestream import Size, claimed_size
from llava_ultra_ext.data.dicom.header import Limits
from llava_ultra_ext.data.dicom.instance import open_instance
from llava_ultra_ext.data.dicom.refusal import Refused

RAMP = np.tile(np.arange(128, dtype=np.uint8), (128, 1))  # (128, 128), 0 to 127 from left to right


def reason(path: Path, limits: Limits = Limits(), **kwargs) -> str:  # noqa: B008
    with pytest.raises(Refused) as caught:
        list(open_instance(path, limits=limits, **kwargs).frames())
    return caught.value.reason


def only(path: Path) -> np.ndarray:
    (frame,) = open_instance(path).frames()
    return frame


def test_reasons_of_headers(tmp_path: Path) -> None:
    ct = made(RAMP)
    ct.Modality = "CT"
    icon = made(RAMP[:99])
    report = made(RAMP)
    del report.Rows
    gone = made(RAMP)
    del gone.PixelData
    film = made(RAMP, syntax=MPEG2MPML)
    film.PixelData = encapsulate([b"film"])
    hsv = made(np.zeros((128, 128, 3), np.uint8), "HSV")
    (tmp_path / "text").write_text("超声所见" * 300, encoding="utf-8")
    (tmp_path / "empty").write_bytes(b"")
    files = {"ct": ct, "icon": icon, "report": report, "gone": gone, "film": film, "hsv": hsv}
    for name, dataset in files.items():
        write(tmp_path / name, dataset)
    expected = {
        "ct": "other_modality", "icon": "too_small", "report": "not_an_image", "gone": "not_an_image",
        "film": "no_decoder", "hsv": "unsupported_pixels",
        "text": "not_dicom", "empty": "not_dicom", "absent": "unreadable_file",
    }  # fmt: skip
    assert {name: reason(tmp_path / name) for name in expected} == expected
    assert open_instance(tmp_path / "ct", modalities=("CT",)).shape == (1, 128, 128)
    assert open_instance(tmp_path / "ct", modalities=()).shape == (1, 128, 128)


def test_a_file_without_modality_counts_by_its_storage_class(tmp_path: Path) -> None:
    dataset = made(RAMP)
    del dataset.Modality
    assert open_instance(write(tmp_path / "a", dataset)).shape == (1, 128, 128)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    assert reason(write(tmp_path / "a", dataset)) == "other_modality"


def test_limits_hold_before_anything_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "a", made(np.stack([RAMP] * 4), NumberOfFrames=4))
    assert reason(path, Limits(frame_pixels=128 * 128 - 1)) == "too_large"
    assert reason(path, Limits(frames=3)) == "too_large"
    assert len(list(open_instance(path, limits=Limits(frame_pixels=128 * 128, frames=4)).frames())) == 4


def test_a_claim_of_huge_frames_reserves_nothing(tmp_path: Path) -> None:
    import io

    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(RAMP).save(encoded, "JPEG")
    jpeg = bytearray(encoded.getvalue())
    assert claimed_size(bytes(jpeg)) == Size(128, 128, 1)
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = b"\xff\xff\xff\xff"
    assert claimed_size(bytes(jpeg)) == Size(65535, 65535, 1)
    dataset = made(RAMP, syntax=JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([bytes(jpeg)])
    tracemalloc.start()
    assert reason(write(tmp_path / "a", dataset)) == "broken_pixels"
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_a_deflated_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = write(tmp_path / "a", made(np.zeros((1000, 1000), np.uint8), syntax=DeflatedExplicitVRLittleEndian))
    assert path.stat().st_size < 20_000
    assert reason(path, Limits(inflated_bytes=900_000)) == "too_large"
    assert only(path).shape == (1000, 1000, 3)


def test_a_cut_cine_gives_no_frame_at_all(tmp_path: Path) -> None:
    path = write(tmp_path / "a", made(np.stack([RAMP] * 4), NumberOfFrames=4))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Refused) as caught:
        open_instance(path)
    assert caught.value.reason == "broken_pixels"
    short = made(np.stack([RAMP] * 4), NumberOfFrames=5)
    assert reason(write(tmp_path / "b", short)) == "broken_pixels"


def test_a_compressed_cine_with_too_few_frames_is_broken(tmp_path: Path) -> None:
    dataset = made(np.stack([RAMP] * 3), NumberOfFrames=3)
    dataset.compress(RLELossless)
    whole = write(tmp_path / "a", dataset)
    assert len(list(open_instance(whole).frames())) == 3
    dataset.NumberOfFrames = 4
    assert reason(write(tmp_path / "b", dataset)) == "broken_pixels"


def test_memory_does_not_grow_with_the_cine(tmp_path: Path) -> None:
    frame = np.zeros((256, 256, 3), np.uint8)
    path = write(tmp_path / "a", made(np.stack([frame] * 200), "RGB", NumberOfFrames=200))  # 39 MB
    tracemalloc.start()
    assert sum(1 for _ in open_instance(path).frames()) == 200
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_eight_bits_are_shown_as_they_are_and_inverted_for_monochrome1(tmp_path: Path) -> None:
    assert (only(write(tmp_path / "a", made(RAMP)))[5, :, 1] == RAMP[5]).all()
    assert (only(write(tmp_path / "b", made(RAMP, "MONOCHROME1")))[5, :, 1] == 255 - RAMP[5]).all()


def test_a_window_is_applied(tmp_path: Path) -> None:
    # PS3.3 C.11.2.1.2.1: centre 64, width 65: 31.5 and below is black, 95.5 and above white
    row = only(write(tmp_path / "a", made(RAMP, WindowCenter=64, WindowWidth=65)))[0, :, 0]
    assert (row[:32] == 0).all() and (row[96:] == 255).all() and row[63] in (126, 127)
    assert (np.diff(row[32:96].astype(int)) > 0).all()


@pytest.mark.parametrize("width", [0, -5])
def test_a_window_that_is_none_is_left_out(tmp_path: Path, width: int) -> None:
    assert (only(write(tmp_path / "a", made(RAMP, WindowCenter=64, WindowWidth=width)))[0, :, 0] == RAMP[0]).all()


def test_a_lookup_table_is_applied(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor, table.LUTData = [128, 0, 8], [255 - 2 * value for value in range(128)]
    table["LUTData"].VR = table["LUTDescriptor"].VR = "US"
    row = only(write(tmp_path / "a", made(RAMP, VOILUTSequence=Sequence([table]))))[0, :, 0]
    assert row.tolist() == [255 - 2 * value for value in range(128)]


def test_sixteen_bits_are_spread_by_window_or_by_the_frame(tmp_path: Path) -> None:
    deep = RAMP.astype(np.uint16) * 100 + 1000
    row = only(write(tmp_path / "a", made(deep)))[0, :, 0]
    assert row[0] == 0 and row[127] == 255 and row[64] == round(64 / 127 * 255)
    assert (only(write(tmp_path / "c", made(deep, "MONOCHROME1")))[0, :, 0] == 255 - row).all()
    windowed = made(deep, WindowCenter=2048 + 1000, WindowWidth=4096)
    row = only(write(tmp_path / "b", windowed))[0, :, 0]
    # PS3.3 C.11.2.1.2.1: (x - 3047.5) / 4095 + 0.5 of white; x = 2000 for the tenth pixel
    assert row[0] == 0 and row[127] == 255 and abs(int(row[10]) - 62) <= 1


@pytest.mark.parametrize("deep", [False, True])
def test_big_endian(tmp_path: Path, deep: bool) -> None:
    from pydicom.filewriter import dcmwrite

    colour = np.stack([RAMP, RAMP + 1, RAMP + 2], axis=-1)
    dataset = made((colour.astype(np.uint16) << 8).astype(">u2") if deep else colour, "RGB", ExplicitVRBigEndian)
    dcmwrite(tmp_path / "a", dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)
    np.testing.assert_array_equal(only(tmp_path / "a"), colour)


def test_an_old_file_without_preamble_is_read(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    dataset = Dataset()
    dataset.update(made(RAMP))
    dataset.save_as(tmp_path / "a", implicit_vr=True, little_endian=True)
    assert (tmp_path / "a").read_bytes()[128:132] != b"DICM"
    assert (only(tmp_path / "a")[3, :, 2] == RAMP[3]).all()


def test_no_value_of_the_header_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    dataset = made(RAMP)
    dataset.PatientName, dataset.PatientID = "Geheim^Name", "ID-7788"
    path = write(tmp_path / "Geheim", dataset)
    path.write_bytes(path.read_bytes().replace(b"(0028", b"").replace(b"2.25.1", b"Geheim"))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(Refused) as caught:
        open_instance(path)
    told = f"{caught.value} {caplog.text} {[str(entry.message) for entry in recwarn]}"
    assert "Geheim" not in told and "7788" not in told
