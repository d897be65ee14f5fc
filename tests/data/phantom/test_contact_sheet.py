"""The contact sheet: a row an exam, outlines by what a frame is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawn import exam, lesion_of

from llava_ultra_ext.data.sources.phantom.bmode import render_frame
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings
from llava_ultra_ext.data.sources.phantom.contact_sheet import DISTRACTED, STRAY, VALID, contact_sheet

SETTINGS = PhantomSettings(size=64)
LABEL, TILE, ROW, EDGE = 190, 70, 83, 3


def test_rows_hold_the_frames_and_outlines_tell_what_they_are() -> None:
    sick = exam("liver", 3, lesion_of("liver"), z=(20.0, 30.0, 31.0, 32.0), visibility=(0.0,))
    valid, plain, distracted, stray = sick.frames
    frames = (
        replace(valid, visibility=(1.0,)),
        plain,
        replace(distracted, distractors=("shadow",)),
        replace(stray, site="breast"),
    )
    sick = replace(sick, frames=frames)
    sheet = np.asarray(contact_sheet([exam("kidney", 4), sick], SETTINGS))
    assert sheet.shape == (2 * ROW, LABEL + 4 * TILE, 3)
    corners = [tuple(int(value) for value in sheet[ROW, LABEL + place * TILE]) for place in range(4)]
    assert corners == [VALID, (24, 24, 24), DISTRACTED, STRAY]
    assert tuple(sheet[0, LABEL].tolist()) == (24, 24, 24)  # a normal exam has no frame to find
    for place in range(4):
        left = LABEL + place * TILE + EDGE
        np.testing.assert_array_equal(
            sheet[ROW + EDGE : ROW + EDGE + 64, left : left + 64], render_frame(sick, place, 64)
        )
    assert (sheet[ROW : ROW + 80, :LABEL] > 200).any()


def test_no_exams_are_refused() -> None:
    with pytest.raises(ValueError, match="0 exams"):
        contact_sheet([], SETTINGS)
    with pytest.raises(ValueError, match="size 20"):
        contact_sheet([exam("liver", 3)], PhantomSettings(size=20))
