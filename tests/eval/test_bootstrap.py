"""Intervals: what they hold is checked against known variances and against resampling by hand."""

from __future__ import annotations

import numpy as np
import pytest

from llava_ultra_ext.eval import bootstrap
from llava_ultra_ext.eval.sheets import ALL, Sheet


def sheet(hits: list[float]) -> Sheet:
    rows = np.array(hits, dtype=float).reshape(-1, 1)
    return Sheet(("hits",), ("",), ALL, rows, lambda sums, count: 100 * sums / count)


def draws(hits: list[float], resamples: int = 4000, seed: int = 0) -> np.ndarray:
    return bootstrap.resampled([sheet(hits)], np.arange(len(hits)), resamples, seed)[0]


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    # 100 of 400 right: standard error √(0.25·0.75/400) = 2.165 %, so 25 ± 1.96·2.165 = 20.76 … 29.24
    low, high = bootstrap.interval(draws([1.0] * 100 + [0.0] * 300))
    assert (low[0], high[0]) == pytest.approx((20.76, 29.24), abs=0.4)


def test_a_figure_that_never_varies_has_no_width() -> None:
    low, high = bootstrap.interval(draws([1.0] * 30, 100))
    assert (low[0], high[0]) == (100, 100)


def test_draws_are_the_seeds_own_and_of_the_given_rows() -> None:
    hits = [1.0, 0.0, 1.0, 0.0, 0.0]
    assert np.array_equal(draws(hits, 50), draws(hits, 50)) and not np.array_equal(draws(hits, 50), draws(hits, 50, 1))
    chosen = bootstrap.resampled([sheet(hits)], np.array([0, 2]), 20, 0)[0]
    assert (chosen == 100).all()


def test_the_sums_are_those_of_resampled_questions() -> None:
    hits = list(map(float, range(7)))
    generator = np.random.default_rng((3, 7))
    drawn = generator.integers(7, size=(12, 7))
    expected = 100 * np.array(hits)[drawn].mean(axis=1)
    assert draws(hits, 12, 3)[:, 0] == pytest.approx(expected)


def test_whole_exams_are_drawn() -> None:
    # 20 exams of 5 equal answers, half of them right: as wide as 20 answers, √(0.25/20) = 11.2 %, not as 100
    hits = [float(exam % 2) for exam in range(20) for _ in range(5)]
    exams = [exam for exam in range(20) for _ in range(5)]
    clustered = bootstrap.resampled([sheet(hits)], np.arange(100), 4000, 0, exams)[0]
    assert clustered.std() == pytest.approx(11.18, abs=0.4) and draws(hits).std() == pytest.approx(5, abs=0.2)


def test_exams_of_unlike_size_weigh_as_many_questions_as_they_have() -> None:
    # exams (right, asked): (3, 3), (0, 1); drawn twice of two: 6 of 6, 3 of 4, 0 of 2
    figures = bootstrap.resampled([sheet([1.0, 1.0, 1.0, 0.0])], np.arange(4), 200, 0, ["a", "a", "a", "b"])[0]
    assert set(figures[:, 0]) == {100.0, 75.0, 0.0}


def test_memory_chunks_change_nothing_but_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    hits = [1.0] * 10 + [0.0] * 10
    whole = draws(hits, 2000)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 100)
    parts = draws(hits, 2000)
    assert parts.shape == whole.shape and np.array_equal(parts, whole)


def test_two_models_meet_the_same_resamples() -> None:
    better, worse = [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50
    a, b = bootstrap.resampled([sheet(better), sheet(worse)], np.arange(100), 2000, 0)
    # they differ on 10 questions of 100: standard error of the paired difference √(0.1·0.9/100) = 3 %
    low, high = bootstrap.interval(a - b)
    assert (low[0], high[0]) == pytest.approx((10 - 1.96 * 3, 10 + 1.96 * 3), abs=1.2)
    assert bootstrap.p_value(a - b)[0] == pytest.approx(2 / 2001)  # no resample turns it round
    assert bootstrap.p_value(a - a)[0] == 1.0
