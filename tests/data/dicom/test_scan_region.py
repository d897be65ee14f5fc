"""The scan's box: by the header's regions, else by motion or texture."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="llava_ultra_ext[dicom] is not installed")

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from llava_ultra_ext.data.dicom.scan_region import Box, scan_region

HEIGHT, WIDTH = 400, 600
SCAN = (slice(80, 360), slice(120, 560))
generator = np.random.default_rng(0)


def screen(brightness: int = 90) -> np.ndarray:
    """A flat blue banner above with white letters, letters at the side, speckle as the scan."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:60] = (40, 60, 120)
    for top, left in [(20, 30), (20, 200), (200, 20), (230, 20)]:
        letters = np.random.default_rng(top * left).random((3, 16)) < 0.5
        picture[top : top + 12, left : left + 64] = np.kron(letters, np.full((4, 4), 255, np.uint8))[..., None]
    picture[SCAN] = generator.integers(20, brightness, (280, 440, 1))
    return picture


def region(left: int, top: int, right: int, bottom: int, form: int = 1) -> Dataset:
    item = Dataset()
    item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right, bottom
    item.RegionSpatialFormat = form
    return item


def header(*regions: Dataset) -> Dataset:
    dataset = Dataset()
    dataset.SequenceOfUltrasoundRegions = Sequence(regions)
    return dataset


def near(box: Box, found: str) -> bool:
    expected = (SCAN[1].start, SCAN[0].start, SCAN[1].stop, SCAN[0].stop)
    return box.found == found and all(abs(one - other) <= 6 for one, other in zip(box[:4], expected, strict=True))


def test_regions_are_joined_and_graphics_left_out() -> None:
    duplex = header(region(100, 60, 299, 159), region(50, 200, 399, 299, form=3), region(0, 0, 599, 30, form=5))
    assert scan_region(duplex, [screen()]) == Box(50, 60, 400, 300, "header")


def test_regions_are_cut_to_the_picture() -> None:
    assert scan_region(header(region(100, 60, 4000, 9999)), [screen()]) == Box(100, 60, 600, 400, "header")


@pytest.mark.parametrize(
    "regions",
    [(), (region(0, 0, 599, 399),), (region(300, 300, 10, 10),), (region(700, 500, 800, 600),), (Dataset(),)],
    ids=["empty", "whole", "inverted", "outside", "without corners"],
)
def test_regions_that_say_nothing_leave_it_to_the_pixels(regions: tuple[Dataset, ...]) -> None:
    assert near(scan_region(header(*regions), [screen()]), "texture")


def test_a_cine_is_where_the_picture_moves() -> None:
    frames = [screen() for _ in range(6)]
    assert near(scan_region({}, iter(frames)), "motion")


def test_a_cine_that_stands_still_is_a_still() -> None:
    assert near(scan_region({}, [screen()] * 5), "texture")


def test_a_dual_picture_is_one_box() -> None:
    picture = screen()
    picture[:, 330:350] = 0
    picture[:60, 330:350] = (40, 60, 120)
    assert near(scan_region({}, [picture]), "texture")


def test_a_picture_without_scan_says_so() -> None:
    picture = screen()
    picture[SCAN] = 0
    assert scan_region({}, [picture]) == Box(0, 0, 600, 400, "whole")
    assert scan_region({}, [np.zeros((120, 120, 3), np.uint8)]) == Box(0, 0, 120, 120, "whole")


def test_the_box_cuts_frames_and_cines() -> None:
    frame = screen()
    box = Box(10, 20, 110, 70)
    assert box.cut(frame).shape == (50, 100, 3) and box.cut(frame[None]).shape == (1, 50, 100, 3)
    assert (box.cut(frame)[0, 0] == frame[20, 10]).all()


def test_no_frames() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        scan_region({}, [])


@pytest.mark.parametrize(
    ("name", "box"),
    [("OBXXXX1A.dcm", (120, 60, 800, 577)), ("color3d_jpeg_baseline.dcm", (84, 31, 596, 415))],
)
def test_real_headers(name: str, box: tuple[int, ...]) -> None:
    dicom_frames = pytest.importorskip("dicom_frames")
    from llava_ultra_ext.data.dicom.instance import open_instance

    path = next((path for _, path in dicom_frames.local_files() if path.name == name), None)
    if path is None:
        pytest.skip("pydicom-data is not installed")
    instance = open_instance(path)
    assert scan_region(instance.dataset, instance.frames([0])) == (*box, "header")
