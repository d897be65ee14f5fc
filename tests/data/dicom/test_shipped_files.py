"""Every file that `pydicom` and `pydicom-data` ship is frames, or has a reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the files come with pydicom")
pytest.importorskip("data_store", reason="the files come with pydicom-data")

from dicom_frames import local_files  # noqa: E402
from llava_ultra_ext.data.dicom.instance import open_instance  # noqa: E402
from llava_ultra_ext.data.dicom.refusal import REASONS, Refused  # noqa: E402

FILES = [path for _, path in local_files() if path.suffix not in (".py", ".pyc")]

ULTRASOUND = {"frames": 20, "other_modality": 140, "not_an_image": 72, "not_dicom": 11, "too_small": 1}
FRAMES = 171
ANY = {"frames": 100, "not_an_image": 72, "too_small": 58, "not_dicom": 11, "broken_pixels": 2, "broken_header": 1}
BROKEN = {"JPEG-lossy.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "badVR.dcm"}
"""pydicom's own decoders refuse the first two; the third says 1A for its number of frames."""


def account(path: Path, modalities: tuple[str, ...] | None) -> tuple[str, int]:
    """(reason or "frames", number of frames)."""
    try:
        instance = open_instance(path) if modalities is None else open_instance(path, modalities)
        count = 0
        for frame in instance.frames():
            assert frame.shape == (*instance.shape[1:], 3) and frame.dtype == np.uint8
            count += 1
        assert count == instance.shape[0]
        return "frames", count
    except Refused as refused:
        assert refused.reason in REASONS
        assert path.name not in str(refused)
        return refused.reason, 0


def test_ultrasound_is_frames_or_has_a_reason() -> None:
    found = [account(path, None) for path in FILES]
    assert Counter(reason for reason, _ in found) == ULTRASOUND
    assert sum(frames for _, frames in found) == FRAMES


def test_with_any_modality_each_file_has_its_reason_too() -> None:
    found = {path: account(path, ()) for path in FILES}
    assert Counter(reason for reason, _ in found.values()) == ANY
    broken = {path.name for path, (reason, _) in found.items() if reason.startswith("broken")}
    assert broken == BROKEN


@pytest.mark.parametrize(
    "name",
    ["US1_J2KR.dcm", "US1_UNCR.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm", "SC_rgb_rle_2frame.dcm",
     "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_expb.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jpeg_gdcm.dcm"],
)  # fmt: skip
def test_colours_are_those_of_pydicom(name: str) -> None:
    path = next(path for path in FILES if path.name == name)
    expected = pydicom.pixels.pixel_array(path)
    expected = expected[None] if expected.ndim == 3 else expected
    for index, frame in enumerate(open_instance(path, ()).frames()):
        np.testing.assert_array_equal(frame, expected[index])


def test_a_few_frames_are_the_same_as_all() -> None:
    path = next(path for path in FILES if path.name == "examples_ybr_color.dcm")
    every = list(open_instance(path).frames())
    some = list(open_instance(path).frames([29, 3, 3]))
    assert len(some) == 2
    np.testing.assert_array_equal(some, [every[3], every[29]])
    assert list(open_instance(path).frames([])) == []
    with pytest.raises(IndexError, match="0 to 29"):
        next(open_instance(path).frames([30]))
