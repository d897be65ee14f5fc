"""The safety figures at a small size, by the benchmark's own measurement."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("faker", reason="makes the names")
pytest.importorskip("dicomanonymizer", reason="needs llava_ultra_ext[hospital]")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

import deidentify
from deidentify_cases import Case

REPORTS = 200


def test_planted_identifiers_go_and_clinical_words_stay():
    result = deidentify.measure(REPORTS, seed=11)
    assert (
        result["structured_planted"] > REPORTS
        and result["names_planted"] > REPORTS
        and result["clinical_words"] > 20 * REPORTS
    )
    assert result["structured_leaks"] == 0 and result["header_leaks"] == 0
    # 10,000 reports give 0.07 % in phrases that the rules know and 0.39 % in others, 0.23 % together, below the target
    # of 0.5 %. At this size (some 150 names each) a name or two more are chance.
    assert result["names_missed_share_by_phrases"]["seen"] <= 0.01
    assert result["names_missed_share"] <= 0.015
    assert result["clinical_removed_share"] <= 0.005


def test_the_measurement_sees_a_leak():
    key = deidentify.SECRET.patient("1")
    case = Case("1", "张伟", "", [("name", "seen", "李小明"), ("phone", "seen", "13812345678")], [], ["结节", "结节"])
    assert deidentify.leaks(case, "李小明 13812345678", key) == case.planted
    assert deidentify.leaks(case, "[姓名]小明", key) == case.planted[:1] and deidentify.leaks(case, "", key) == []
    assert deidentify.lost(case, "结节") == ["结节"]
