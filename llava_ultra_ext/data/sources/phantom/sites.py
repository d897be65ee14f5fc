"""The six sites of the phantom: probe, layered anatomy, where lesions may lie and what they may look like.

Levels are dB against the healthy organ's tissue. Our choice throughout: the paper names the sites only. Depths are
those of a zoomed picture, so that fine detail is a few pixels wide at 192 px.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

SWEEP_MM = 40.0
"""Length of a sweep along z."""


@dataclass(frozen=True)
class Layer:
    """A layer across the picture, from `top` mm down to the next one.

    Args:
        echo: dB.
        texture: "plain", "streak" (along the layer), "cloud" or "fibre" (bright strands), of a depth `texture_db`.
        line: dB of the bright line at its top, 0 for none.
        wave: mm that its top goes up and down.
    """

    name: str
    top: float
    echo: float
    texture: str = "plain"
    texture_db: float = 0.0
    line: float = 0.0
    wave: float = 0.5


@dataclass(frozen=True)
class Landmark:
    """An ellipse that runs along z: an organ, a vessel, the trachea.

    Args:
        centre, radii: mm; `angle` in degrees.
        line: dB of its bright wall, 0 for none.
        loss: attenuation in dB per mm beyond the tissue's; negative brightens what lies behind.
        flow: signed speed from -1 to 1 that colour Doppler shows.
        drift: mm that its centre goes sideways for each mm of z.
    """

    name: str
    centre: tuple[float, float]
    radii: tuple[float, float]
    echo: float
    angle: float = 0.0
    texture: str = "plain"
    texture_db: float = 0.0
    line: float = 0.0
    loss: float = 0.0
    flow: float = 0.0
    drift: float = 0.0


@dataclass(frozen=True)
class Box:
    """Where centres of lesions may lie, mm: lowest and highest x, lowest and highest y."""

    x: tuple[float, float]
    y: tuple[float, float]


@dataclass(frozen=True)
class LesionKind:
    """What a kind of lesion may look like.

    Args:
        nature: "cyst", "benign" or "suspicious".
        echo, shape, posterior, flow: allowed value -> its share.

    Margin, texture and calcification of the solid kinds are all allowed; `is_suspicious` says which go together.
    """

    nature: str
    echo: Mapping[str, float]
    shape: Mapping[str, float]
    posterior: Mapping[str, float]
    flow: Mapping[str, float]


@dataclass(frozen=True)
class Site:
    """One site.

    Args:
        probe: "linear" or "curved".
        depth: mm below the probe's middle. `width`: mm of the square picture's side.
        radius, half_angle: of a curved probe, mm and degrees; 0 for a linear one.
        layers: from the skin down. `landmarks`: painted in this order.
        organ: half axes in mm of the organ, across and in depth. `lesion_mm`: half axes allowed.
        places: key -> box of lesion centres.
        lesions: key of the kind -> what it may look like.
        two_sided: the pictures of the second place are mirrored; the anatomy tells the side.
    """

    key: str
    probe: str
    depth: float
    width: float
    layers: tuple[Layer, ...]
    landmarks: tuple[Landmark, ...]
    organ: tuple[float, float]
    lesion_mm: tuple[float, float]
    places: Mapping[str, Box]
    lesions: Mapping[str, LesionKind]
    radius: float = 0.0
    half_angle: float = 0.0
    two_sided: bool = False

    @property
    def detail(self) -> float:
        """How many times larger fine detail is than in a picture of 40 mm, so that it is as many pixels wide."""
        return self.width / 40.0


def is_suspicious(margin: str, calcification: str, texture: str) -> bool:
    """Whether a solid lesion is: with two of spiculated margin, micro-calcification, heterogeneous texture.

    Our choice: fine detail alone decides, so that a coarse grid of patches cannot.
    """
    return (margin == "spiculated") + (calcification == "micro") + (texture == "heterogeneous") >= 2


_CYST = LesionKind("cyst", {"anechoic": 1.0}, {"regular": 1.0}, {"enhancement": 1.0}, {"none": 1.0})
_SHAPE = {"regular": 0.5, "irregular": 0.5}
_POSTERIOR = {"none": 0.6, "enhancement": 0.15, "shadow": 0.25}
_FLOW = {"none": 0.34, "peripheral": 0.33, "internal": 0.33}
_DARK = {"hypoechoic": 0.65, "isoechoic": 0.15, "hyperechoic": 0.2}
_BRIGHT = {"hypoechoic": 0.25, "isoechoic": 0.15, "hyperechoic": 0.6}


def _kinds(benign: str, suspicious: str, bright: bool = False) -> Mapping[str, LesionKind]:
    echo = _BRIGHT if bright else _DARK
    return MappingProxyType(
        {
            "cyst": _CYST,
            benign: LesionKind("benign", echo, _SHAPE, _POSTERIOR, _FLOW),
            suspicious: LesionKind("suspicious", _DARK, _SHAPE, _POSTERIOR, _FLOW),
        }
    )


_THYROID = Site(
    "thyroid",
    "linear",
    depth=38.0,
    width=40.0,
    layers=(
        Layer("skin", 0.0, 4.0, line=14.0, wave=0.05),
        Layer("fat", 1.6, -9.0, "streak", 4.0, line=6.0, wave=0.3),
        Layer("strap muscles", 4.6, -11.0, "streak", 6.0, line=12.0, wave=0.5),
        Layer("longus colli", 9.4, -9.0, "fibre", 5.0, line=10.0, wave=0.5),
        Layer("spine", 32.5, -16.0, "cloud", 3.0, line=13.0, wave=1.0),
    ),
    landmarks=(
        Landmark("lobe", (0.0, 18.4), (14.0, 9.0), 0.0, -4.0, "cloud", 1.2, line=9.0, drift=0.02),
        Landmark("carotid", (-14.8, 19.5), (3.6, 3.3), -42.0, line=12.0, loss=-0.5, flow=0.9, drift=0.03),
        Landmark("trachea", (17.8, 22.0), (7.0, 8.0), -22.0, line=26.0, loss=2.2),
    ),
    organ=(14.0, 9.0),
    lesion_mm=(3.2, 5.8),
    places=MappingProxyType({"right": Box((-5.0, 5.0), (16.0, 21.0)), "left": Box((-5.0, 5.0), (16.0, 21.0))}),
    lesions=_kinds("benign_nodule", "suspicious_nodule"),
    two_sided=True,
)

_BREAST = Site(
    "breast",
    "linear",
    depth=38.0,
    width=40.0,
    layers=(
        Layer("skin", 0.0, 4.0, line=14.0, wave=0.05),
        Layer("fat", 1.8, -11.0, "fibre", 4.5, line=8.0, wave=0.6),
        Layer("gland", 7.0, 0.0, "fibre", 4.2, line=9.0, wave=1.3),
        Layer("deep fat", 27.5, -10.0, "fibre", 5.5, line=8.0, wave=1.0),
        Layer("pectoral muscle", 30.5, -9.0, "fibre", 6.5, line=13.0, wave=0.6),
        Layer("chest wall", 36.0, -18.0, line=20.0, wave=0.5),
    ),
    landmarks=(
        Landmark("fat lobule", (-13.0, 5.6), (5.0, 1.9), -11.0, 8.0, "streak", 3.0, line=6.0, drift=0.08),
        Landmark("fat lobule", (12.0, 12.0), (5.5, 1.8), -8.0, -10.0, "streak", 3.0, line=5.0, drift=-0.1),
    ),
    organ=(20.0, 10.2),
    lesion_mm=(3.2, 6.2),
    places=MappingProxyType({"shallow": Box((-9.0, 9.0), (12.0, 14.0)), "deep": Box((-9.0, 9.0), (20.0, 22.5))}),
    lesions=_kinds("fibroadenoma", "suspicious_mass"),
)

_abdominal = partial(Site, probe="curved", depth=54.0, width=60.0, radius=35.0, half_angle=24.0)

_ABDOMEN = (
    Layer("skin", 0.0, 4.0, line=13.0, wave=0.05),
    Layer("fat", 2.0, -10.0, "streak", 4.0, line=6.0, wave=0.4),
    Layer("muscle", 5.0, -9.0, "streak", 6.0, line=13.0, wave=0.4),
)

_LIVER = _abdominal(
    "liver",
    layers=(
        *_ABDOMEN,
        Layer("liver", 9.5, 0.0, "cloud", 0.8, line=15.0, wave=0.4),
        Layer("diaphragm", 48.5, -15.0, "cloud", 3.0, line=24.0, wave=1.4),
    ),
    landmarks=(
        Landmark("portal vein", (-13.0, 30.0), (7.0, 1.7), -40.0, 24.0, line=14.0, flow=0.7, drift=0.06),
        Landmark("hepatic vein", (16.0, 39.0), (6.0, 1.3), -38.0, -38.0, line=5.0, flow=-0.7, drift=-0.06),
        Landmark("portal branch", (17.0, 20.0), (2.2, 1.1), -36.0, 10.0, line=13.0, flow=0.6, drift=0.05),
    ),
    organ=(28.0, 19.0),
    lesion_mm=(4.4, 7.6),
    places=MappingProxyType({"near_capsule": Box((-9.0, 9.0), (17.0, 19.5)), "deep": Box((-7.0, 7.0), (32.0, 37.0))}),
    lesions=_kinds("hemangioma", "suspicious_mass", bright=True),
)

_KIDNEY = _abdominal(
    "kidney",
    layers=(
        *_ABDOMEN,
        Layer("perirenal fat", 11.0, 7.0, "fibre", 3.0, line=9.0, wave=0.8),
        Layer("psoas", 46.0, -8.0, "streak", 5.0, line=8.0, wave=0.8),
    ),
    landmarks=(
        Landmark("cortex", (0.0, 29.0), (24.0, 13.0), -1.0, 0.0, "cloud", 1.0, line=13.0, drift=0.04),
        Landmark("sinus", (0.0, 30.0), (13.0, 4.6), 9.0, 0.0, "cloud", 4.0, drift=0.04),
        Landmark("pyramid", (-9.0, 22.5), (2.2, 2.4), -8.0, drift=0.08),
        Landmark("pyramid", (8.5, 22.5), (2.2, 2.4), -8.0, drift=0.08),
        Landmark("pyramid", (9.0, 36.5), (2.3, 2.2), -8.0, drift=0.08),
        Landmark("renal vein", (1.0, 31.0), (4.0, 0.9), -34.0, 12.0, flow=0.7, drift=0.1),
    ),
    organ=(24.0, 13.0),
    lesion_mm=(4.4, 7.2),
    places=MappingProxyType(
        {
            "upper": Box((-16.5, -14.0), (26.0, 31.0)),
            "middle": Box((-2.0, 2.0), (22.5, 25.0)),
            "lower": Box((14.0, 16.5), (26.0, 31.0)),
        }
    ),
    lesions=_kinds("angiomyolipoma", "suspicious_mass", bright=True),
)

_UTERUS = _abdominal(
    "uterus",
    layers=(*_ABDOMEN, Layer("pelvis", 9.0, -8.0, "cloud", 5.0, line=8.0, wave=0.6)),
    landmarks=(
        Landmark("bladder", (-9.0, 9.5), (13.0, 4.0), -42.0, 6.0, line=11.0, loss=-0.25, drift=0.06),
        Landmark("myometrium", (0.0, 32.0), (25.0, 16.5), 0.0, -4.0, "cloud", 1.4, line=10.0, drift=0.03),
        Landmark("endometrium halo", (0.0, 32.0), (16.0, 3.2), -6.0, -4.0, drift=0.03),
        Landmark("endometrium", (0.0, 32.0), (15.0, 1.9), 9.0, -4.0, "streak", 2.0, line=4.0, drift=0.03),
    ),
    organ=(25.0, 16.5),
    lesion_mm=(4.2, 6.8),
    places=MappingProxyType(
        {"anterior": Box((-11.0, 11.0), (22.0, 24.0)), "posterior": Box((-11.0, 11.0), (40.0, 42.0))}
    ),
    lesions=_kinds("fibroid", "suspicious_mass"),
)

_PROSTATE = _abdominal(
    "prostate",
    layers=(*_ABDOMEN, Layer("pelvis", 8.0, -6.0, "cloud", 5.0, line=8.0, wave=0.6)),
    landmarks=(
        Landmark("bladder", (0.0, 10.0), (17.0, 4.8), -42.0, 0.0, line=11.0, loss=-0.25, drift=0.03),
        Landmark("peripheral zone", (0.0, 32.5), (23.0, 15.5), 2.0, 0.0, "cloud", 1.0, line=15.0, drift=0.02),
        Landmark("transition zone", (0.0, 26.0), (15.0, 8.6), -5.0, 0.0, "cloud", 2.4, line=9.0, drift=0.02),
        Landmark("rectum", (0.0, 53.0), (16.0, 4.0), -10.0, 0.0, line=20.0, loss=2.0),
    ),
    organ=(23.0, 15.5),
    lesion_mm=(4.2, 6.4),
    places=MappingProxyType(
        {"transition": Box((-8.0, 8.0), (24.0, 28.0)), "peripheral": Box((-11.0, 11.0), (39.0, 41.0))}
    ),
    lesions=_kinds("hyperplasia", "suspicious_nodule"),
)

SITE: Mapping[str, Site] = MappingProxyType(
    {site.key: site for site in (_THYROID, _BREAST, _LIVER, _KIDNEY, _UTERUS, _PROSTATE)}
)
"""Key, one of `case.SITES` -> the site."""
