"""Chinese texts about ultrasound frames that are true by construction: each word comes from the pixels or the header.

Frames count as colour Doppler when at least 1 % of their pixels are strongly coloured: coloured menus and palette
borders of grey pictures stay below a quarter of that, colour flow lies above four times that.

Findings say only what a picture can show. Two pairs of files hold the same pictures in two sizes, one of them a cine of
30 and of 120 frames: with size and length in the findings, no teacher could tell whose text it reads. The length is
asked for all the same; a model can but guess which of the two it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dicom_frames import Pixels, Source

STRONG_COLOUR = 100  # difference between a pixel's largest and smallest channel, of 255
COLOUR_SHARE = 0.01  # of all pixels
DARK, BRIGHT = 15.0, 32.0  # mean luminance, of 255
UPPER, LOWER = 0.35, 0.65  # centre of luminance, as a share of the height


@dataclass(frozen=True)
class Facts:
    """What the pixels of frames say.

    Attributes:
        colour: Whether the frames hold colour Doppler.
        hues: The main colours of the coloured pixels, the largest first; empty without colour.
        brightness: 较暗, 中等 or 较亮.
        position: 上部, 中部 or 下部: where the bright part lies.
    """

    colour: bool
    hues: tuple[str, ...]
    brightness: str
    position: str


def facts_of(frames: Pixels) -> Facts:
    """Measures (k, H, W, 3) RGB frames."""
    red, green, blue = (frames[..., channel] for channel in range(3))
    largest, smallest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    coloured = largest - smallest > STRONG_COLOUR  # (k, H, W)
    rows = frames.mean(axis=(0, 2)) @ np.array([0.299, 0.587, 0.114])  # (H,) luminance
    centre = float((rows * np.arange(len(rows))).sum() / max(float(rows.sum()), 1e-6) / len(rows))
    mean = float(rows.mean())
    colour = float(coloured.mean()) >= COLOUR_SHARE
    return Facts(
        colour=colour,
        hues=_hues(frames[coloured].astype(np.float32)) if colour else (),
        brightness="较暗" if mean < DARK else "较亮" if mean > BRIGHT else "中等",
        position="上部" if centre < UPPER else "下部" if centre > LOWER else "中部",
    )


def findings(source: Source, frames: Pixels) -> str:
    """A description in the manner of 超声所见 of `frames`, which come from `source`."""
    facts = facts_of(frames)
    kind = ("彩色多普勒" if facts.colour else "灰阶") + "超声" + ("动态序列" if source.is_cine else "静态图")
    parts = [kind]
    parts.append("画面亮度中等" if facts.brightness == "中等" else f"画面整体{facts.brightness}")
    parts.append(f"亮区主要位于画面{facts.position}")
    parts.append(f"可见彩色血流信号，以{'和'.join(facts.hues)}为主" if facts.colour else "未见彩色血流信号")
    return "，".join(parts) + "。"


def questions(source: Source, frames: Pixels) -> list[tuple[str, str, str]]:
    """(question, answer, CLOSED | OPEN) triples about `frames`, which come from `source`."""
    facts = facts_of(frames)
    colour = ("是", "可见彩色血流信号") if facts.colour else ("不是", "为灰阶超声图像")
    hues = f"以{'和'.join(facts.hues)}为主。" if facts.colour else "未见彩色血流信号。"
    return [
        ("该检查是否为彩色多普勒超声图像？", f"{colour[0]}，{colour[1]}。", "CLOSED"),
        ("这是静态图还是动态序列？", "动态序列。" if source.is_cine else "静态图。", "CLOSED"),
        ("画面整体亮度如何？", f"{facts.brightness}，亮区主要位于画面{facts.position}。", "OPEN"),
        ("彩色血流以哪些颜色为主？", hues, "OPEN"),
        ("原始文件共有多少帧？", f"{len(source.frames)}帧。", "OPEN"),
    ]


def _hues(pixels: npt.NDArray[np.float32]) -> tuple[str, ...]:
    """Names of the colours that a fifth or more of (n, 3) strongly coloured pixels have, the largest first."""
    red, green, blue = pixels[:, 0], pixels[:, 1], pixels[:, 2]
    is_blue = (blue >= red) & (blue >= green)
    is_green = ~is_blue & (green > red)
    is_yellow = ~is_blue & ~is_green & (green - blue > 0.4 * (red - blue))
    is_red = ~is_blue & ~is_green & ~is_yellow
    shares = {
        "蓝色": float(is_blue.mean()),
        "绿色": float(is_green.mean()),
        "橙黄色": float(is_yellow.mean()),
        "红色": float(is_red.mean()),
    }
    return tuple(sorted((name for name, share in shares.items() if share >= 0.2), key=lambda name: -shares[name]))
