"""Drawn exams: repeatable, few valid frames, distractors only where nothing is shown, rules of fine detail."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from llava_ultra_ext.data.sources.phantom.case import CALCIFICATIONS, FINE, MARGINS, SITES, TEXTURES
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings, draw_case, visibility
from llava_ultra_ext.data.sources.phantom.sites import SITE, SWEEP_MM, is_suspicious

SETTINGS = PhantomSettings()
CASES = [draw_case(f"exam-{seed}", seed, SETTINGS) for seed in range(600)]
SICK = [case for case in CASES if case.lesions]


def test_the_seed_decides() -> None:
    assert draw_case("exam-7", 7, SETTINGS) == CASES[7]
    assert draw_case("exam-7", 8, SETTINGS) != replace(CASES[7], seed=8)


def test_shares_are_as_asked() -> None:
    # 600 exams: a share of .2 has a standard error of .016, .15 of 480 the same, .7 and .25 of .019.
    assert 1 - len(SICK) / len(CASES) == pytest.approx(0.2, abs=0.05)
    assert np.mean([len(case.lesions) == 2 for case in SICK]) == pytest.approx(0.15, abs=0.05)
    assert np.mean([any(f.distractors for f in case.frames) for case in CASES]) == pytest.approx(0.7, abs=0.06)
    assert np.mean([any(f.site != case.site for f in case.frames) for case in CASES]) == pytest.approx(0.25, abs=0.06)
    assert {len(case.frames) for case in CASES} == set(range(2, 17))
    assert {case.site for case in CASES} == set(SITES)


def test_few_frames_are_valid_and_each_lesion_is_in_one_of_them() -> None:
    shares = [len(case.valid_frames(0.5)) / len(case.frames) for case in SICK]
    assert 0.2 <= np.mean(shares) <= 0.30
    for case in SICK:
        shown = {number for place in case.valid_frames(0.5) for number in case.shown(0.5)[place]}
        assert shown == set(range(len(case.lesions)))


def test_visibility_is_the_share_of_the_largest_cross_section() -> None:
    case = SICK[0]
    lesion = case.lesions[0]
    z, deep = lesion.centre[2], lesion.radii[2]
    assert visibility(lesion, z) == 1.0
    assert visibility(lesion, z + 0.6 * deep) == pytest.approx(0.64)
    assert visibility(lesion, z - 1.1 * deep) == 0.0
    for frame in case.frames:
        assert frame.visibility[0] == (visibility(lesion, frame.z) if frame.site == case.site else 0.0)


def test_distractors_never_lie_in_valid_frames_but_in_frames_that_show_nothing() -> None:
    distracted = [(case, frame) for case in SICK for frame in case.frames if frame.distractors]
    assert len(distracted) > 500
    assert all(max(frame.visibility) < 0.5 for _, frame in distracted)
    assert {name for _, frame in distracted for name in frame.distractors} == {
        "vessel",
        "shadow",
        "reverberation",
        "calipers",
    }


def test_valid_frames_show_the_flow_and_the_colour_box_does_not_tell_them() -> None:
    on: dict[bool, list[bool]] = {True: [], False: []}
    for case in SICK:
        valid = case.valid_frames(0.5)
        for place, frame in enumerate(case.frames):
            on[place in valid].append(frame.doppler)
    assert all(on[True])
    assert np.mean(on[False]) == pytest.approx(0.75, abs=0.05)


def test_without_doppler_no_lesion_has_flow() -> None:
    cases = [draw_case("e", seed, replace(SETTINGS, doppler_exams=0.0)) for seed in range(80)]
    assert {lesion.flow for case in cases for lesion in case.lesions} == {"none"}
    assert not any(case.frames[place].doppler for case in cases if case.lesions for place in case.valid_frames(0.5))


def test_a_sweep_rests_so_neighbours_are_near_identical() -> None:
    cases = [draw_case("e", seed, replace(SETTINGS, shuffled=False, min_frames=8)) for seed in range(60)]
    steps = np.concatenate([np.diff([frame.z for frame in case.frames]) for case in cases])
    assert (steps >= 0).all()
    assert np.median(steps) < 0.3 < 3.0 < np.percentile(steps, 90)  # mm: stays, and ways between them
    shuffled = [draw_case("e", seed, replace(SETTINGS, min_frames=8)) for seed in range(60)]
    assert min(min(np.diff([frame.z for frame in case.frames])) for case in shuffled) < -3.0
    assert all(-3 < frame.z < SWEEP_MM + 3 for case in CASES for frame in case.frames)


@pytest.mark.parametrize(("margin", "calcification", "texture"), product(MARGINS, CALCIFICATIONS, TEXTURES))
def test_two_of_three_fine_signs_make_a_solid_lesion_suspicious(margin: str, calcification: str, texture: str) -> None:
    signs = [margin == "spiculated", calcification == "micro", texture == "heterogeneous"]
    assert is_suspicious(margin, calcification, texture) == (sum(signs) >= 2)


def test_kinds_agree_with_the_rule_and_coarse_attributes_do_not_decide() -> None:
    lesions = [(SITE[case.site].lesions[lesion.kind].nature, lesion) for case in SICK for lesion in case.lesions]
    for nature, lesion in lesions:
        fine = tuple(getattr(lesion, name) for name in ("margin", "calcification", "texture"))
        if nature == "cyst":
            coarse = (lesion.echo, lesion.shape, lesion.posterior, lesion.flow)
            assert (*fine, *coarse) == ("smooth", "none", "homogeneous", "anechoic", "regular", "enhancement", "none")
        else:
            assert is_suspicious(*fine) == (nature == "suspicious")
    solid = [(nature == "suspicious", lesion) for nature, lesion in lesions if nature != "cyst"]
    for name in ("echo", "shape", "posterior", "flow"):
        assert _best_guess(solid, (name,)) < 0.65
    assert _best_guess(solid, FINE) == 1.0


def _best_guess(solid: list[tuple[bool, object]], names: tuple[str, ...]) -> float:
    """Share right of who knows these attributes only and guesses the commoner kind."""
    seen: dict[tuple[str, ...], list[bool]] = {}
    for suspicious, lesion in solid:
        seen.setdefault(tuple(getattr(lesion, name) for name in names), []).append(suspicious)
    return sum(max(sum(group), len(group) - sum(group)) for group in seen.values()) / len(solid)


def test_lesions_lie_in_their_place_inside_the_organ_and_apart() -> None:
    for case in SICK:
        for lesion in case.lesions:
            box = SITE[case.site].places[lesion.place]
            assert box.x[0] <= lesion.centre[0] <= box.x[1]
            assert box.y[0] <= lesion.centre[1] <= box.y[1]
            assert max(lesion.radii[:2]) <= min(SITE[case.site].organ)
        places = [lesion.place for lesion in case.lesions]
        assert len(set(places)) == (1 if SITE[case.site].two_sided else len(places)) or not places


def test_easy_exams_have_no_edges_and_no_lesion_as_bright_as_the_organ() -> None:
    cases = [draw_case("e", seed, replace(SETTINGS, easy=True, two_lesions=0.0)) for seed in range(120)]
    assert "isoechoic" not in {lesion.echo for case in cases for lesion in case.lesions}
    assert not any(0.0 < share < 0.5 for case in cases for frame in case.frames for share in frame.visibility)
    assert any(0.0 < share < 0.5 for case in SICK for frame in case.frames for share in frame.visibility)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 63}, "size 63: must be 64 to 512"),
        ({"size": 513}, "size 513: must be 64 to 512"),
        ({"min_frames": 0}, "min_frames 0, max_frames 16: an exam has 1 to 16"),
        ({"min_frames": 5, "max_frames": 4}, "min_frames 5, max_frames 4"),
        ({"max_frames": 17}, "max_frames 17"),
        ({"normal": 1.5}, "normal 1.5: is a share"),
        ({"two_lesions": -0.1}, "two_lesions -0.1: is a share"),
        ({"valid_share": 0.0}, "valid_share 0.0: is a share above 0"),
        ({"least_visible": 0.99}, "least_visible 0.99"),
        ({"sites": ("liver", "spleen")}, "Choose some of thyroid, breast"),
        ({"sites": ()}, "Choose some of thyroid"),
        ({"lesion_scale": 3.0}, "does not fit the thyroid of 18.0 mm"),
        ({"lesion_scale": 0.0}, "lesion_scale 0.0"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        draw_case("e", 0, replace(SETTINGS, **changes))  # type: ignore[arg-type]


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed -1: must not be negative"):
        draw_case("e", -1, SETTINGS)
