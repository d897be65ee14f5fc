"""Frames with texts and masks, from which the small foundation models learn; exams of seeds that no row trains on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion
from tqdm import tqdm

from llava_ultra_ext.data.sources.phantom.bmode import render_frame
from llava_ultra_ext.data.sources.phantom.case import Case
from llava_ultra_ext.data.sources.phantom.overlays import add_distractors
from llava_ultra_ext.data.sources.phantom.probe import probe_of
from llava_ultra_ext.data.sources.phantom.report_text import findings
from llava_ultra_ext.data.sources.phantom.volume import lesions_cut, sample

KINDS = ("object", "outline", "empty", "dark", "bright", "reflecting", "flowing")
"""What a pixel may belong to: something with an outline (a lesion, a stray vessel), and that outline; the tissue's
level without speckle. Nothing of organs, of what a lesion is or of reports, as in the masks that SAM learnt from."""

OUTLINE_PX = 2

FRAMES_AN_EXAM = 3
TRUE_PAIRS = 0.5
"""Share of frames that show what their text says; the rest is any frame of the exam, as captions of the web are."""


@dataclass(frozen=True)
class Pretraining:
    """N frames.

    Args:
        pixels: (N, S, S, 3) uint8, for SAM.
        masks: (N, kinds, S, S) bool.
        small: (N, s, s, 3) uint8, for CLIP.
        texts: N findings.
    """

    pixels: np.ndarray
    masks: np.ndarray
    small: np.ndarray
    texts: list[str]


def draw_frames(cases: Sequence[Case], least_visible: float, size: int, clip_size: int, workers: int) -> Pretraining:
    """Renders some frames of each exam, in processes."""
    draw = partial(_frames_of, least_visible=least_visible, size=size, clip_size=clip_size)
    with ProcessPoolExecutor(workers) as pool:
        found = list(
            tqdm(pool.map(draw, cases, chunksize=8), total=len(cases), desc="frames", unit="exam", mininterval=5)
        )
    pixels, masks, small = (np.concatenate([part[number] for part in found]) for number in range(3))
    return Pretraining(pixels, masks, small, [text for part in found for text in part[3]])


def masks_of(case: Case, frame: int, size: int) -> np.ndarray:
    """(kinds, S, S) bool of one frame, without the speckle, at the picture's own resolution."""
    plan = case.frames[frame]
    probe = probe_of(plan.site, size)
    tissue = sample(case, frame, probe.points)
    objects, without = lesions_cut(case, frame, probe.points), tissue.echo.copy()
    add_distractors(tissue, plan, probe.points, np.random.default_rng([case.seed, 7, frame]))
    objects |= tissue.echo != without  # of the distractors only a vessel changes what the tissue scatters
    parts = (objects, tissue.echo, tissue.mirror, np.abs(tissue.flow), np.ones_like(tissue.echo))
    objects, echo, mirror, flow, seen = (
        (probe.scan @ part.ravel().astype(np.float32)).reshape(size, size) for part in parts
    )
    inside = objects > 0.5
    outline = inside & ~binary_erosion(inside, iterations=OUTLINE_PX)
    levels = (echo < -25, (echo >= -25) & (echo < -6), echo > 4, mirror > 1, (flow > 0.2) & plan.doppler)
    return np.stack([level & (seen > 0.5) for level in (inside, outline, *levels)])


def _frames_of(case: Case, least_visible: float, size: int, clip_size: int) -> tuple[np.ndarray, ...]:
    choice = random.Random(f"{case.seed}/pretraining")
    valid = case.valid_frames(least_visible)
    places = [
        choice.choice(valid) if choice.random() < TRUE_PAIRS else choice.randrange(len(case.frames))
        for _ in range(FRAMES_AN_EXAM)
    ]
    frames = [render_frame(case, place, size) for place in places]
    # As the image processor makes CLIP's copy: area first, so that detail is averaged away and not aliased.
    small = [
        np.asarray(Image.fromarray(frame).resize((clip_size, clip_size), Image.Resampling.BICUBIC)) for frame in frames
    ]
    masks = [masks_of(case, place, size) for place in places]
    return np.stack(frames), np.stack(masks), np.stack(small), [findings(case)] * len(places)
