"""What a phantom exam is, before anything is drawn or written: the one record that pictures and texts both come from.

Everything that a report may say stands here as a word of ultrasound's vocabulary, so that a text is true of its
pictures by construction. Lengths are millimetres; x runs across the picture, y is depth under the skin, z is the way of
the sweep.
"""

from __future__ import annotations

from dataclasses import dataclass

SITES = ("thyroid", "breast", "liver", "kidney", "uterus", "prostate")

ECHOES = ("anechoic", "hypoechoic", "isoechoic", "hyperechoic")
MARGINS = ("smooth", "spiculated")
SHAPES = ("regular", "irregular")
TEXTURES = ("homogeneous", "heterogeneous")
CALCIFICATIONS = ("none", "micro", "coarse")
POSTERIORS = ("none", "enhancement", "shadow")
FLOWS = ("none", "peripheral", "internal")

FINE = ("margin", "texture", "calcification")
"""Attributes that only fine detail shows: a grid of coarse patches cannot tell them."""

DISTRACTORS = ("vessel", "shadow", "reverberation", "calipers")
"""What catches the eye in frames that show nothing of the findings; no report names them."""


@dataclass(frozen=True)
class Lesion:
    """One lesion, an ellipsoid with a surface.

    Args:
        kind: the site's name of it, a key of `sites.Site.lesions`; it decides the diagnosis.
        place: a key of `sites.Site.places`; readable from a frame that shows the lesion.
        centre: x, y, z in mm.
        radii: half axes along x, y, z in mm; the size in a report is twice the largest and smallest of x and y.
        echo: one of `ECHOES`; the others likewise.
    """

    kind: str
    place: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    echo: str
    margin: str
    shape: str
    texture: str
    calcification: str
    posterior: str
    flow: str

    @property
    def size_mm(self) -> tuple[int, int]:
        """Longer and shorter diameter in the picture's plane, whole millimetres."""
        across, deep = (max(1, round(2 * radius)) for radius in self.radii[:2])
        return max(across, deep), min(across, deep)


@dataclass(frozen=True)
class FramePlan:
    """One frame of the sweep.

    Args:
        site: what organ it shows; another one than the exam's in a stray frame.
        z: mm along the sweep.
        doppler: whether the colour box is on.
        distractors: of `DISTRACTORS`.
        visibility: of each lesion of the exam, the share of its largest cross-section that this frame shows, 0 to 1.
    """

    site: str
    z: float
    doppler: bool
    distractors: tuple[str, ...]
    visibility: tuple[float, ...]


@dataclass(frozen=True)
class Case:
    """One exam.

    Args:
        seed: of everything random in it; the same seed gives the same pictures and the same texts.
        site: one of `SITES`.
        lesions: none in a normal exam.
        frames: in the order of the exam, 1 to 16.
        plain: its texts have one wording a value, in one order.
        detail: times the usual size of a lesion's spikes and micro-calcifications.
    """

    exam_id: str
    seed: int
    site: str
    lesions: tuple[Lesion, ...]
    frames: tuple[FramePlan, ...]
    plain: bool = False
    detail: float = 1.0

    def shown(self, least: float) -> list[tuple[int, ...]]:
        """For each frame, the 0-based lesions that it shows by at least the share `least`."""
        return [
            tuple(number for number, share in enumerate(frame.visibility) if share >= least) for frame in self.frames
        ]

    def valid_frames(self, least: float) -> tuple[int, ...]:
        """0-based frames that mirror the text; in a normal exam all frames of its own organ.

        Our choice for exams of several lesions: the frames that show the most of them at once, at least one.
        """
        if not self.lesions:
            return tuple(place for place, frame in enumerate(self.frames) if frame.site == self.site)
        counts = [len(lesions) for lesions in self.shown(least)]
        return tuple(place for place, count in enumerate(counts) if count and count == max(counts))
