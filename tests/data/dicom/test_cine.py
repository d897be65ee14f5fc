"""Frames of a cine, uniformly or by change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="llava_ultra_ext[dicom] is not installed")

from made_file import made, write

from llava_ultra_ext.data.dicom.cine import by_change, choose_frames, uniform
from llava_ultra_ext.data.dicom.instance import open_instance


def flat(*levels: int) -> list[np.ndarray]:
    return [np.full((120, 120, 3), level, np.uint8) for level in levels]


def test_uniform_takes_the_middles_of_equal_parts() -> None:
    assert uniform(120, 4) == (15, 45, 75, 105)
    assert uniform(120, 1) == (60,)
    assert uniform(3, 8) == (0, 1, 2)
    assert uniform(1, 5) == (0,)


def test_change_meets_every_scene() -> None:
    scenes = flat(*[10] * 50, *[90] * 3, *[10] * 40, *[200] * 7)
    assert by_change(scenes, 3) == (0, 50, 93)
    assert by_change(scenes, 2) == (0, 93)
    assert by_change(scenes, 8) == (0, 50, 93)  # nothing new is left


def test_change_of_a_sweep_spreads_over_it() -> None:
    assert by_change(flat(*range(0, 101, 5)), 3) == (0, 10, 20)


def test_a_clock_outside_the_scan_does_not_count(tmp_path: Path) -> None:
    pixels = np.zeros((6, 120, 120), np.uint8)
    pixels[:, :20] = np.array([0, 250, 40, 130, 90, 200])[:, None, None]
    instance = open_instance(write(tmp_path / "a", made(pixels, NumberOfFrames=6)))
    assert choose_frames(instance, 4, "change", (0, 20, 120, 120)) == (0,)
    assert len(choose_frames(instance, 4, "change")) == 4
    assert choose_frames(instance, 2) == (1, 4)


def test_bad_requests(tmp_path: Path) -> None:
    instance = open_instance(write(tmp_path / "a", made(np.zeros((120, 120), np.uint8))))
    with pytest.raises(ValueError, match="uniform, change"):
        choose_frames(instance, 2, "best")
    with pytest.raises(ValueError, match="at least 1"):
        choose_frames(instance, 0)
