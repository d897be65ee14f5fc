"""Pictures: speckle, resolution, brightness in and behind lesions, colour, detail that only a large picture shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawn import MIDDLE, around, exam, lesion_of
from numpy.typing import NDArray

from llava_ultra_ext.data.sources.phantom.bmode import SLICE_MM, render_frame, scatterers, spread
from llava_ultra_ext.data.sources.phantom.case import SITES
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings, draw_case
from llava_ultra_ext.data.sources.phantom.probe import probe_of
from llava_ultra_ext.data.sources.phantom.sites import SITE


def _speckle(site: str, side: int, z: float = 0.0) -> NDArray[np.float32]:
    probe = probe_of(site, side)
    return np.abs(spread(scatterers(1, z, *probe.points.x.shape), probe))


@pytest.mark.parametrize("site", ["breast", "liver"])
@pytest.mark.parametrize("side", [128, 192])
def test_uniform_tissue_has_rayleigh_speckle_of_unit_power(site: str, side: int) -> None:
    amplitude = _speckle(site, side)
    assert amplitude.mean() / amplitude.std() == pytest.approx(1.913, rel=0.15)
    assert (amplitude**2).mean() == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("site", ["breast", "liver"])
def test_speckle_is_wider_at_depth_and_wider_than_high(site: str) -> None:
    probe = probe_of(site, 192)
    amplitude = _speckle(site, 192)
    pitch = np.hypot(np.diff(probe.points.x, axis=1), np.diff(probe.points.y, axis=1)).mean(axis=1)
    rows = len(amplitude) // 6

    def width(part: NDArray[np.float32], step: float) -> float:
        """mm along axis 1 to where the correlation falls to a half."""
        part = part - part.mean()
        matches = [float((part[:, : part.shape[1] - lag] * part[:, lag:]).mean()) for lag in range(12)]
        curve = np.array(matches) / matches[0]
        below = int(np.argmax(curve < 0.5))
        return step * (below - 1 + (curve[below - 1] - 0.5) / (curve[below - 1] - curve[below]))

    shallow, deep = width(amplitude[:rows], pitch[:rows].mean()), width(amplitude[-rows:], pitch[-rows:].mean())
    assert deep > 1.5 * shallow
    assert deep > 1.5 * width(amplitude[-rows:].T, probe.points.step)


def test_near_planes_share_speckle_and_far_ones_do_not() -> None:
    first = _speckle("breast", 128)
    near, middle, far = (
        np.corrcoef(first.ravel(), _speckle("breast", 128, z).ravel())[0, 1]
        for z in (0.1 * SLICE_MM, 0.5 * SLICE_MM, 2 * SLICE_MM)
    )
    assert near > 0.9 > 0.65 > middle > 0.3 > 0.1 > abs(far)


@pytest.mark.parametrize("site", SITES)
def test_near_frames_are_more_alike_than_far_ones(site: str) -> None:
    case = exam(site, 4, z=(MIDDLE, MIDDLE + 0.1, MIDDLE + 8.0))
    first, near, far = (render_frame(case, place, 96).ravel() for place in range(3))
    assert np.corrcoef(first, near)[0, 1] > 0.95 > np.corrcoef(first, far)[0, 1]


def test_the_seed_and_only_the_seed_decides() -> None:
    case = draw_case("e", 5, PhantomSettings())
    picture = render_frame(case, 0, 96)
    np.testing.assert_array_equal(picture, render_frame(replace(case, exam_id="other"), 0, 96))
    assert (picture != render_frame(replace(case, seed=6), 0, 96)).mean() > 0.2


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("size", [64, 192])
def test_anechoic_is_far_darker_than_the_organ_and_echoes_are_in_order(site: str, size: int) -> None:
    levels = {}
    for echo in ("anechoic", "hypoechoic", "isoechoic", "hyperechoic"):
        lesion = lesion_of(site, echo=echo)
        picture = render_frame(exam(site, 11, lesion), 0, size)
        levels[echo] = around(picture, site, *lesion.centre[:2], 0.5 * lesion.radii[0], 0.5 * lesion.radii[1]).mean()
    assert levels["anechoic"] < 0.2 * levels["isoechoic"]
    assert levels["anechoic"] + 30 < levels["hypoechoic"] < levels["isoechoic"] - 30
    assert levels["isoechoic"] + 30 < levels["hyperechoic"]


def _behind(site: str, **changes: str) -> float:
    """Brightness behind a lesion against the same picture without what the changes say, grey levels."""
    lesion = lesion_of(site, **changes)
    plain = replace(lesion, posterior="none", calcification="none")
    deep = lesion.centre[1] + 1.25 * lesion.radii[1] + 2.0
    parts = [
        around(render_frame(exam(site, 12, which), 0, 192), site, lesion.centre[0], deep, 1.5, 1.0)
        for which in (lesion, plain)
    ]
    return float(parts[0].mean() - parts[1].mean())


@pytest.mark.parametrize("site", ["breast", "thyroid", "liver", "prostate"])
def test_behind_a_cyst_is_brighter_and_behind_a_shadow_darker(site: str) -> None:
    assert _behind(site, echo="anechoic", posterior="enhancement") > 12
    assert _behind(site, posterior="shadow") < -20


def test_behind_a_cyst_is_brighter_than_beside_it() -> None:
    lesion = lesion_of("breast", echo="anechoic", posterior="enhancement")
    gain = []
    for seed in range(6):
        picture = render_frame(exam("breast", seed, lesion), 0, 192)
        deep = lesion.centre[1] + lesion.radii[1] + 3.5
        behind = around(picture, "breast", lesion.centre[0], deep, 2.0, 2.0).mean()
        beside = [around(picture, "breast", lesion.centre[0] + x, deep, 2.0, 2.0).mean() for x in (-9.0, 9.0)]
        gain.append(behind - np.mean(beside))
    assert np.mean(gain) > 15


@pytest.mark.parametrize("site", ["breast", "kidney"])
def test_behind_coarse_calcification_is_darker_than_behind_none(site: str) -> None:
    dark = []
    for seed in range(5):
        lesion = lesion_of(site, calcification="coarse")
        plain = replace(lesion, calcification="none")
        parts = [
            around(
                render_frame(exam(site, seed, which), 0, 192),
                site,
                lesion.centre[0],
                lesion.centre[1] + lesion.radii[1] + 2.0,
                lesion.radii[0],
                1.0,
            ).mean(axis=0)
            for which in (lesion, plain)
        ]
        dark.append(float((parts[0] - parts[1]).min()))
    assert max(dark) < -40


FINE_CHANGES = [("margin", "spiculated"), ("texture", "heterogeneous"), ("calcification", "micro")]


def _reduced(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each 4 × 4 pixels as their mean: of 192 px, what 48 px would show."""
    rows, columns = picture.shape[0] // 4, picture.shape[1] // 4
    return picture[: 4 * rows, : 4 * columns].reshape(rows, 4, columns, 4, 3).mean(axis=(1, 3))


def _change(site: str, seed: int, **changes: str) -> tuple[float, float]:
    """How much other attributes of a lesion change the picture around it, at 192 px and at 48 (root mean square)."""
    lesion = lesion_of(site)
    plain, other = (
        around(render_frame(exam(site, seed, which), 0, 192), site, *lesion.centre[:2], *_box(lesion.radii))
        for which in (lesion, replace(lesion, **changes))
    )
    return tuple(float(np.sqrt((part**2).mean())) for part in (other - plain, _reduced(other - plain)))


@pytest.mark.parametrize(("name", "value"), FINE_CHANGES)
@pytest.mark.parametrize("site", SITES)
def test_fine_detail_is_seen_at_192_pixels_and_mostly_lost_at_48(site: str, name: str, value: str) -> None:
    large, small = np.mean([_change(site, seed, **{name: value}) for seed in range(5)], axis=0)
    assert large > 7.0  # grey levels
    assert small < 0.64 * large


@pytest.mark.parametrize("site", SITES)
def test_coarse_attributes_stay_at_48_pixels(site: str) -> None:
    for changes in ({"echo": "hyperechoic"}, {"shape": "irregular"}):
        large, small = np.mean([_change(site, seed, **changes) for seed in range(5)], axis=0)
        assert small > 0.72 * large


@pytest.mark.parametrize(("name", "value"), FINE_CHANGES)
def test_fine_detail_does_not_change_the_mean_brightness(name: str, value: str) -> None:
    shifts = []
    for seed in range(12):
        lesion = lesion_of("breast", echo=("hypoechoic", "hyperechoic")[seed % 2])
        plain, fine = (
            around(render_frame(exam("breast", seed, which), 0, 192), "breast", *lesion.centre[:2], *_box(lesion.radii))
            for which in (lesion, replace(lesion, **{name: value}))
        )
        shifts.append(fine.mean() - plain.mean())
    assert abs(np.mean(shifts)) < 4  # grey levels; hypoechoic and isoechoic are 40 or more apart


def _box(radii: tuple[float, float, float]) -> tuple[float, float]:
    return radii[0] + 1.5, radii[1] + 1.5


def _coloured(picture: NDArray[np.uint8], site: str, x: float, y: float, half: float) -> float:
    part = around(picture, site, x, y, half, half)
    return float((part.max(axis=2) - part.min(axis=2) > 60).mean())


def test_flow_is_seen_with_doppler_only_and_where_the_lesion_has_it() -> None:
    seen = {}
    for flow in ("none", "peripheral", "internal"):
        lesion = lesion_of("breast", flow=flow)
        picture = render_frame(exam("breast", 2, lesion, doppler=True), 0, 192)
        inner = _coloured(picture, "breast", *lesion.centre[:2], 0.45 * lesion.radii[1])
        whole = _coloured(picture, "breast", *lesion.centre[:2], 1.2 * lesion.radii[0])
        seen[flow] = inner, whole
        grey = render_frame(exam("breast", 2, lesion), 0, 192)
        np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    assert seen["none"] == (0.0, 0.0)
    assert seen["peripheral"][0] == 0.0 and seen["peripheral"][1] > 0.05
    assert seen["internal"][0] > 0.05


@pytest.mark.parametrize("name", ["vessel", "shadow", "reverberation", "calipers"])
def test_each_distractor_changes_the_picture(name: str) -> None:
    plain = render_frame(exam("liver", 3), 0, 128).astype(int)
    marked = render_frame(exam("liver", 3, distractors=(name,)), 0, 128).astype(int)
    change = np.abs(marked - plain).max(axis=2) > 40
    assert 0.002 < change.mean() < 0.3
    coloured = (marked.max(axis=2) - marked.min(axis=2) > 60).sum()
    assert (coloured > 20) == (name == "calipers")


def test_a_curved_probe_draws_a_sector_and_a_linear_one_a_rectangle() -> None:
    for site in SITES:
        field = probe_of(site, 128).field
        widths = field.sum(axis=1)
        if SITE[site].probe == "linear":
            assert set(widths[widths > 0].tolist()) == {128}
        else:
            assert widths[20] < 0.65 * widths[90]
        picture = render_frame(exam(site, 1), 0, 128)
        assert picture[:, :120][~field[:, :120]].max() == 0
        assert picture[field].mean() > 60


@pytest.mark.parametrize("size", [64, 80, 128, 200, 512])
def test_sizes_show_the_same_anatomy(size: int) -> None:
    lesion = lesion_of("liver", echo="anechoic")
    picture = render_frame(exam("liver", 3, lesion), 0, size)
    assert picture.shape == (size, size, 3)
    inner = around(picture, "liver", *lesion.centre[:2], 2.0, 2.0).mean()
    outer = around(picture, "liver", lesion.centre[0] - 10, lesion.centre[1] + 2, 1.5, 1.5).mean()
    assert inner < 0.35 * outer


def test_frames_and_sizes_that_do_not_exist_are_refused() -> None:
    case = exam("liver", 3)
    with pytest.raises(ValueError, match="frame 1: hand-made has 1"):
        render_frame(case, 1, 128)
    with pytest.raises(ValueError, match="size 32: must be 64 to 512"):
        render_frame(case, 0, 32)


def test_saliency_does_not_find_the_valid_frames() -> None:
    """The frame that differs most from its exam's mean, and the one of the strongest contrast."""
    settings = PhantomSettings(min_frames=4, max_frames=6, normal=0.0)
    found: dict[str, list[bool]] = {"far": [], "contrast": []}
    for seed in range(900, 935):
        case = draw_case("e", seed, settings)
        frames = np.stack([render_frame(case, place, 64) for place in range(len(case.frames))]).astype(float)
        far = ((frames - frames.mean(axis=0)) ** 2).mean(axis=(1, 2, 3))
        for name, score in (("far", far), ("contrast", frames.std(axis=(1, 2, 3)))):
            found[name].append(int(score.argmax()) in case.valid_frames(settings.least_visible))
    assert max(np.mean(found["far"]), np.mean(found["contrast"])) < 0.6
