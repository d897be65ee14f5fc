"""One picture of many exams for a person to judge: a row an exam, valid frames in green, distractors in orange."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from llava_ultra_ext.data.sources.phantom.bmode import render_frame
from llava_ultra_ext.data.sources.phantom.case import Case
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings

VALID = (60, 220, 90)
DISTRACTED = (255, 150, 40)
STRAY = (170, 110, 255)

_EDGE = 3  # pixels around a frame
_TEXT = 13  # height of a line of text
_LABEL = 190  # width of a row's first column


def contact_sheet(cases: Sequence[Case], settings: PhantomSettings) -> Image.Image:
    """Draw exams, a row each.

    The first column names the exam and its lesions (English keys). A frame's outline is green if it is valid, purple if
    another organ's, orange if it has distractors, which are named under it with the lesion's visibility.

    Args:
        settings: `size` and `least_visible` are used.

    Raises:
        ValueError: no exams; settings that cannot be drawn.
    """
    settings.check()
    if not cases:
        raise ValueError("0 exams: a contact sheet needs at least 1. Draw some with draw_case.")
    tile = settings.size + 2 * _EDGE
    row = max(tile + _TEXT, 6 * _TEXT)
    sheet = Image.new("RGB", (_LABEL + tile * max(len(case.frames) for case in cases), row * len(cases)), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for number, case in enumerate(cases):
        _label(draw, case, number * row)
        valid = case.valid_frames(settings.least_visible) if case.lesions else ()
        for place, frame in enumerate(case.frames):
            left, top = _LABEL + place * tile, number * row
            colour = _outline(place in valid, frame.site != case.site, bool(frame.distractors))
            if colour is not None:
                draw.rectangle((left, top, left + tile - 1, top + tile - 1), fill=colour)
            sheet.paste(Image.fromarray(render_frame(case, place, settings.size)), (left + _EDGE, top + _EDGE))
            words = [f"{max(frame.visibility, default=0.0):.2f}", *frame.distractors]
            words += [frame.site] if frame.site != case.site else []
            draw.text((left + _EDGE, top + tile), " ".join(words), fill=(220, 220, 220))
    return sheet


def _outline(valid: bool, stray: bool, distracted: bool) -> tuple[int, int, int] | None:
    if valid:
        return VALID
    if stray:
        return STRAY
    return DISTRACTED if distracted else None


def _label(draw: ImageDraw.ImageDraw, case: Case, top: int) -> None:
    lines = [f"{case.exam_id} {case.site}"]
    for lesion in case.lesions:
        across, deep = lesion.size_mm
        lines += [
            f"{lesion.kind}, {lesion.place}",
            f"{lesion.echo}, {across}x{deep} mm",
            f"{lesion.margin}, {lesion.shape}",
            f"{lesion.texture}",
            f"calc {lesion.calcification}, behind {lesion.posterior}",
            f"flow {lesion.flow}",
        ]
    lines += [] if case.lesions else ["normal"]
    for number, line in enumerate(lines):
        draw.text((4, top + 2 + number * _TEXT), line, fill=(240, 240, 240))
