"""What beams meet: levels, the shares of posterior attenuation, the outlines of lesions, sides."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import MIDDLE, exam, lesion_of

from llava_ultra_ext.data.sources.phantom.lesion_volume import CALCIFIED_SHADOW_DB, POSTERIOR_DB, outline
from llava_ultra_ext.data.sources.phantom.probe import probe_of
from llava_ultra_ext.data.sources.phantom.sites import SITE
from llava_ultra_ext.data.sources.phantom.volume import sample, side_of


@pytest.mark.parametrize(("posterior", "wanted"), [("none", 0.0), ("enhancement", -7.0), ("shadow", 9.0)])
def test_the_beam_through_the_middle_loses_the_stated_amount(posterior: str, wanted: float) -> None:
    assert POSTERIOR_DB[posterior] == wanted
    points = probe_of("breast", 192).points
    tissue = sample(exam("breast", 3, lesion_of("breast", posterior=posterior)), 0, points)
    loss = tissue.loss.sum(axis=0)
    assert loss[len(loss) // 2] == pytest.approx(wanted, abs=0.4)
    assert loss[2] == 0.0


def test_coarse_calcification_takes_more_than_its_lesion() -> None:
    points = probe_of("breast", 192).points
    coarse = sample(exam("breast", 3, lesion_of("breast", calcification="coarse")), 0, points).loss.sum(axis=0)
    pitch = SITE["breast"].width / len(coarse)
    assert 1.0 < pitch * (coarse > 0.85 * CALCIFIED_SHADOW_DB).sum() < 4.0  # mm of shadow
    micro = sample(exam("breast", 3, lesion_of("breast", calcification="micro")), 0, points).loss
    assert np.abs(micro).max() == 0.0


def test_lesion_levels_in_db_against_the_organ() -> None:
    points = probe_of("breast", 192).points
    lesion = lesion_of("breast")
    inside = np.hypot(points.x - lesion.centre[0], points.y - lesion.centre[1]) < 0.6 * min(lesion.radii[:2])
    for echo, level in (("anechoic", -42.0), ("hypoechoic", -13.0), ("isoechoic", -1.5), ("hyperechoic", 10.0)):
        tissue = sample(exam("breast", 3, lesion_of("breast", echo=echo)), 0, points)
        assert np.unique(tissue.echo[inside]).tolist() == [level]


def test_the_plane_cuts_less_of_an_ellipsoid_off_its_middle() -> None:
    points = probe_of("liver", 192).points
    lesion = lesion_of("liver", echo="anechoic")
    area = {}
    for away in (0.0, 0.6, 1.1):
        case = exam("liver", 3, lesion, z=(MIDDLE + away * lesion.radii[2],))
        bare = exam("liver", 3, z=(MIDDLE + away * lesion.radii[2],))
        changed = sample(case, 0, points).echo != sample(bare, 0, points).echo
        # Lines spread with depth, so each sample counts by its width.
        area[away] = float((changed * (points.depth + points.radius)).sum())
    assert area[0.6] / area[0.0] == pytest.approx(1 - 0.6**2, abs=0.03)
    assert area[1.1] == 0.0


def test_outlines_spikes_are_many_and_narrow_lobes_few_and_wide() -> None:
    rough = outline(lesion_of("breast", margin="spiculated"), np.random.default_rng(0), 1.0)
    lobed = outline(lesion_of("breast", shape="irregular"), np.random.default_rng(0), 1.0)
    plain = outline(lesion_of("breast"), np.random.default_rng(0), 1.0)
    assert 1.0 <= np.ptp(rough.spikes) <= 1.8  # mm
    assert abs(rough.spikes.mean()) < 1e-3  # no mean, so that no coarse grid sees a larger lesion
    assert np.abs(np.fft.rfft(rough.spikes)).argmax() >= 12  # spikes around
    assert np.abs(np.fft.rfft(lobed.lobes - 1)).argmax() in (2, 3)
    assert 0.15 < np.abs(lobed.lobes - 1).max() < 0.35
    assert np.ptp(plain.spikes) == 0.0 and np.ptp(plain.lobes) == 0.0 and np.ptp(lobed.spikes) == 0.0


def test_the_trachea_tells_the_side() -> None:
    points = probe_of("thyroid", 128).points
    for place, right in (("right", True), ("left", False)):
        case = exam("thyroid", 5, lesion_of("thyroid", place=place))
        assert side_of(case, SITE["thyroid"]) == (1.0 if right else -1.0)
        loss = np.maximum(sample(case, 0, points).loss, 0).sum(axis=0)
        assert (loss.argmax() > loss.size / 2) == right


def test_a_stray_frame_shows_no_lesion_and_another_organ() -> None:
    points = probe_of("liver", 128).points
    lesion = lesion_of("breast", echo="anechoic")
    stray = sample(exam("breast", 3, lesion, site="liver", visibility=(0.0,)), 0, points)
    own = sample(exam("liver", 3), 0, points)
    np.testing.assert_array_equal(stray.echo, own.echo)


def test_a_window_holds_all_points_of_its_rectangle() -> None:
    for site, x, y in (("breast", -8.0, 14.0), ("liver", 9.0, 30.0), ("liver", 0.5, 18.0)):
        points = probe_of(site, 128).points
        wanted = (np.abs(points.x - x) < 5) & (np.abs(points.y - y) < 4)
        rows, lines = points.window(x, y, 5, 4)
        outside = wanted.copy()
        outside[rows, lines] = False
        assert wanted.sum() > 300 and not outside.any()
        assert points.x[rows, lines].size < 2.2 * wanted.sum()
