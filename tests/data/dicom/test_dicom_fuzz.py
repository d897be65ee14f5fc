"""Any bytes give frames or one of the stated reasons, in bounded time, and never half a frame."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="llava_ultra_ext[dicom] is not installed")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_file import made, write
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from dicom_frames import local_files
from llava_ultra_ext.data.dicom.header import Limits
from llava_ultra_ext.data.dicom.instance import open_instance
from llava_ultra_ext.data.dicom.refusal import REASONS, Refused

LIMITS = Limits(frame_pixels=2**20, frames=100, smallest_side=1, inflated_bytes=2**22)
SECONDS = 20.0  # of a file of at most 260 KB, on a loaded machine; a hang is for ever
NAMES = ("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle_2frame.dcm", "JPEG2000.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm",
         "SC_rgb_jls_lossy_line.dcm", "examples_ybr_color.dcm")  # fmt: skip


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Whole files of every kind of decoder, the compressed ones real."""
    folder = tmp_path_factory.mktemp("seeds")
    known = {path.name: path for _, path in local_files()}
    files = [known[name].read_bytes() for name in NAMES]
    grey = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40)
    rle = made(np.stack([grey] * 2), NumberOfFrames=2, WindowCenter=500, WindowWidth=900)
    rle.compress(RLELossless)
    deflated = made(grey.astype(np.uint8), "MONOCHROME1", DeflatedExplicitVRLittleEndian)
    return files + [write(folder / "a", dataset).read_bytes() for dataset in (made(grey), rle, deflated)]


def outcome(path: Path) -> str:
    start = time.perf_counter()
    try:
        instance = open_instance(path, (), LIMITS)
        _, rows, columns = instance.shape
        for frame in instance.frames():
            assert frame.shape == (rows, columns, 3) and frame.dtype == np.uint8
        return "frames"
    except Refused as refused:
        assert refused.reason in REASONS
        return refused.reason
    finally:
        assert time.perf_counter() - start < SECONDS


def mutated(data: bytes, cut: float, changes: list[tuple[float, bytes]], front: int) -> bytes:
    """Cut off, then overwritten in some places; `front` puts them into the first bytes, where the header is."""
    result = bytearray(data[: max(1, int(len(data) * cut))])
    for place, value in changes:
        start = int(place * (min(front, len(result)) - 1))
        result[start : start + len(value)] = value
    return bytes(result)


TELLING = (
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\xff\xff",
    b"SQ",
    b"UN\x00\x00",
    b"\xfe\xff\xdd\xe0",
    b"\xfe\xff\x00\xe0",
)
"""Lengths, kinds of values, and ends of items and sequences."""

changes = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8) | st.sampled_from(TELLING)), max_size=6)
QUIET = [HealthCheck.function_scoped_fixture]  # the file is written anew each time


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(
    which=st.integers(0, 9),
    cut=st.just(1.0) | st.floats(0, 1),
    places=changes,
    front=st.sampled_from([200, 2000, 10**9]),
)
def test_mutated_files(
    seeds: list[bytes], tmp_path: Path, which: int, cut: float, places: list[tuple[float, bytes]], front: int
) -> None:
    path = tmp_path / "a"
    path.write_bytes(mutated(seeds[which], cut, places, front))
    outcome(path)


@settings(max_examples=50, deadline=None, suppress_health_check=QUIET, derandomize=True)
@given(data=st.binary(max_size=600), part10=st.booleans())
def test_any_bytes(tmp_path: Path, data: bytes, part10: bool) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\0" * 128 + b"DICM" + data if part10 else data)
    assert outcome(path) != "frames"


def test_whole_seeds_are_frames(seeds: list[bytes], tmp_path: Path) -> None:
    for number, data in enumerate(seeds):
        (tmp_path / "a").write_bytes(data)
        assert outcome(tmp_path / "a") == "frames", number
