"""Two pictures by which a person judges the phantom: exams of every site with their texts, and the breast beside BUSI.

    python playground/phantom_pictures.py [--out playground/results] [--busi ../shared/data/busi]

Writes phantom_exams.png and phantom_beside_busi.png. Nothing is picked by looks: exams are the first ones by seed, and
BUSI's pictures stand evenly apart in the order of their names.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from llava_ultra_ext.data.sources.busi import CLASSES
from llava_ultra_ext.data.sources.phantom import words
from llava_ultra_ext.data.sources.phantom.bmode import render_frame
from llava_ultra_ext.data.sources.phantom.case import SITES, Case
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings, draw_case
from llava_ultra_ext.data.sources.phantom.contact_sheet import DISTRACTED, STRAY, VALID
from llava_ultra_ext.data.sources.phantom.report_text import diagnosis, findings
from llava_ultra_ext.data.sources.phantom.sites import SITE
from llava_ultra_ext.data.whole_file import write_whole

ROOT = Path(__file__).resolve().parents[1]

FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei"),
    *("SimHei", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Noto Serif CJK SC"),
)
"""Fonts with Chinese characters, the best first."""

PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (90, 90, 90)
NATURES = {"benign": ("benign", "cyst"), "malignant": ("suspicious",), "normal": ()}
"""Class of BUSI -> the nature of the phantom's lesion (`sites.LesionKind`)."""

_EDGE = 4  # pixels around a picture: its outline, and the gap to the next one
_TEXT, _LINE = 14, 19  # height of a letter and of its line
_GREYS, _COLOURS = 40, 24  # of the contact sheet


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """A font with Chinese characters; of a collection of fonts, the simplified Chinese one.

    Raises:
        SystemExit: none is installed.
    """
    regular = [entry for entry in font_manager.fontManager.ttflist if entry.weight in (400, "normal", "regular")]
    known = {entry.name: entry.fname for entry in regular}
    path = next((known[name] for name in FONTS if name in known), None)
    if path is None:
        raise SystemExit(f"No font with Chinese characters is installed. Install one of {', '.join(FONTS)}.")
    faces = [ImageFont.truetype(path, size)]
    while path.endswith(".ttc"):
        try:
            faces.append(ImageFont.truetype(path, size, index=len(faces)))
        except OSError:  # past the last one
            break
    return next((face for face in faces if (face.getname()[0] or "").endswith("SC")), faces[0])


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels, or a closing mark more: no line begins with one."""
    lines = [""]
    for piece in re.findall(r"[0-9A-Za-z.×]+|.", text):
        if font(_TEXT).getlength(lines[-1] + piece) > width and piece not in "，。；：、）":
            lines.append("")
        lines[-1] += piece
    return lines


def exam_of(site: str, normal: bool, frames: int, size: int) -> Case:
    """The first exam of a site by seed."""
    settings = PhantomSettings(size, frames, frames, normal=float(normal), sites=(site,), two_lesions=0.3)
    return draw_case(f"PH-{site}", 2 * SITES.index(site) + normal, settings)


def contact_sheet(frames: int, size: int) -> Image.Image:
    """Exams of each site with their texts: on the left one with lesions, on the right a normal one."""
    tile, head = size + 2 * _EDGE, 56
    block = frames * tile + 3 * _EDGE
    pairs = [[exam_of(site, normal, frames, size) for normal in (False, True)] for site in SITES]
    texts = [[caption(case, block - 5 * _EDGE - _TEXT) for case in pair] for pair in pairs]
    heights = [tile + max(map(len, pair)) * _LINE + 10 for pair in texts]
    sheet = Image.new("RGB", (2 * block, head + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    _heads(draw, block)
    top = head
    for pair, text, height in zip(pairs, texts, heights, strict=True):
        for column, (case, lines) in enumerate(zip(pair, text, strict=True)):
            for place in range(frames):
                left = column * block + place * tile
                draw.rectangle((left, top, left + tile - 2, top + tile - 2), fill=_outline(case, place))
                sheet.paste(Image.fromarray(render_frame(case, place, size)), (left + _EDGE, top + _EDGE))
            for number, line in enumerate(lines):
                draw.text((column * block + _EDGE, top + tile - 2 + number * _LINE), line, INK, font(_TEXT))
        top += height
    return _fewer_colours(sheet)


def caption(case: Case, width: int) -> list[str]:
    """Site, findings and diagnosis in lines of about `width` pixels."""
    parts = (f"【{words.SITES[case.site]}】超声所见：{findings(case)}", f"诊断：{diagnosis(case)}")
    return [line for part in parts for line in wrap(part, width)]


def _heads(draw: ImageDraw.ImageDraw, block: int) -> None:
    left = _EDGE
    for colour, text in (
        (VALID, "valid, shows the lesion 有效帧"),
        (DISTRACTED, "distractor that no report names 干扰"),
        (STRAY, "another organ 其他脏器"),
    ):
        draw.rectangle((left, 8, left + 14, 22), fill=colour)
        draw.text((left + 20, 4), text, INK, font(_TEXT))
        left += 44 + round(font(_TEXT).getlength(text))
    for column, text in enumerate(("exams with lesions 有病灶", "normal exams 正常")):
        draw.text((column * block + block / 2, 42), text, INK, font(17), "mm")


def _outline(case: Case, place: int) -> tuple[int, int, int]:
    frame = case.frames[place]
    if case.lesions and place in case.valid_frames(PhantomSettings.least_visible):
        return VALID
    if frame.site != case.site:
        return STRAY
    return DISTRACTED if frame.distractors else PAPER


def _fewer_colours(sheet: Image.Image) -> Image.Image:
    """With a palette: speckle does not compress, and so many greys, of which no eye misses one, make half the file."""
    pixels = np.asarray(sheet)
    flow = pixels[np.ptp(pixels.astype(int), axis=2) > 40]  # a palette of all pixels would have hardly a colour
    colours = Image.fromarray(flow[None]).quantize(_COLOURS, dither=Image.Dither.NONE).getpalette() or []
    greys = [level for grey in np.linspace(0, 255, _GREYS).round().astype(int) for level in [int(grey)] * 3]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*greys, *colours[: 3 * _COLOURS]])
    return sheet.quantize(palette=palette, dither=Image.Dither.NONE)


def beside_busi(busi: Path, each: int, size: int) -> Image.Image:
    """Two rows of breast pictures: the phantom's and BUSI's, `each` of each class, at one size.

    Raises:
        SystemExit: BUSI has no picture of a class.
    """
    chosen = {name: busi_pictures(busi, name, each) for name in CLASSES}
    synthetic = [frame for name in CLASSES for frame in phantom_pictures(name, each, size)]
    real = [Image.open(path).convert("RGB").resize((size, size)) for paths in chosen.values() for path in paths]
    tile, side, head, foot = size + 2 * _EDGE, 34, 30, 50
    sheet = Image.new("RGB", (side + tile * len(real), head + 2 * tile + foot), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (name, chinese) in enumerate(CLASSES.items()):
        middle = side + (number + 0.5) * each * tile
        draw.text((middle, head / 2), f"{name} {chinese}", INK, font(17), "mm")
    for row, (label, pictures) in enumerate((("phantom 仿体", synthetic), ("BUSI 真实图像", real))):
        top = head + row * tile
        sheet.paste(_sideways(label, tile), (0, top))
        for place, picture in enumerate(pictures):
            sheet.paste(picture, (side + place * tile + _EDGE, top + _EDGE))
    names = ", ".join(path.relative_to(busi).as_posix() for paths in chosen.values() for path in paths)
    lines = (
        f"Phantom: the first breast exams by seed, their best frame without colour Doppler, drawn at {size} px.",
        f"BUSI: Al-Dhabyani et al., Data in Brief 28 (2020) 104863, CC BY 4.0; {names}, at {size} px.",
    )
    for number, text in enumerate(lines):
        draw.text((side + _EDGE, head + 2 * tile + 2 + 22 * number), text, FAINT, font(14))
    return sheet


def _sideways(label: str, length: int) -> Image.Image:
    strip = Image.new("RGB", (length, 34), PAPER)
    ImageDraw.Draw(strip).text((length / 2, 17), label, INK, font(17), "mm")
    return strip.transpose(Image.Transpose.ROTATE_90)


def busi_pictures(busi: Path, name: str, count: int) -> list[Path]:
    """Pictures of a class, evenly spaced in the order of their names.

    Raises:
        SystemExit: there are fewer.
    """
    paths = sorted(path for path in (busi / name).glob("*.*g") if "_mask" not in path.stem)
    if len(paths) < count:
        raise SystemExit(f"--busi {busi}: has {len(paths)} pictures in {name}, {count} are shown. Give BUSI's folder.")
    return [paths[(2 * place + 1) * len(paths) // (2 * count)] for place in range(count)]


def phantom_pictures(name: str, count: int, size: int) -> list[Image.Image]:
    """The best frames of the first breast exams whose lesion is of a class, each in its turn of the class's natures."""
    natures, seed = NATURES[name], 100
    found: list[Image.Image] = []
    settings = PhantomSettings(
        size,
        4,
        4,
        float(not natures),
        two_lesions=0,
        distractor_exams=0,
        stray_exams=0,
        doppler_exams=0,
        sites=("breast",),
    )
    while len(found) < count:
        case = draw_case("PH-breast", seed, settings)
        seed += 1
        wanted = natures[len(found) % len(natures)] if natures else None
        if case.lesions and SITE["breast"].lesions[case.lesions[0].kind].nature != wanted:
            continue
        best = max(range(len(case.frames)), key=lambda place: max(case.frames[place].visibility, default=0.0))
        frames = list(case.frames)
        frames[best] = replace(frames[best], doppler=False)  # BUSI has none
        found.append(Image.fromarray(render_frame(replace(case, frames=tuple(frames)), best, size)))
    return found


def write(sheet: Image.Image, path: Path) -> None:
    """As PNG, whole or not at all."""
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    write_whole(path, buffer.getvalue())
    print(f"{path}: {sheet.width}x{sheet.height}, {len(buffer.getvalue()) / 1000:.0f} kB")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "playground" / "results", help="folder (default: %(default)s)")
    add("--busi", type=Path, default=ROOT / ".." / "shared" / "data" / "busi", help="BUSI (default: %(default)s)")
    add("--frames", type=int, default=4, help="of each exam of the contact sheet (default: %(default)s)")
    add("--size", type=int, default=192, help="side of its frames in pixels (default: %(default)s)")
    args = parser.parse_args(argv)
    write(beside_busi(args.busi.resolve(), each=2, size=256), args.out / "phantom_beside_busi.png")
    write(contact_sheet(args.frames, args.size), args.out / "phantom_exams.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
