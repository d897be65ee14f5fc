"""Closed answers: the same meaning is right, a substring is not."""

from __future__ import annotations

from itertools import combinations

import pytest

from llava_ultra_ext.eval.closed import SYNONYMS, lmms_eval_same, same_answer
from llava_ultra_ext.eval.normalize import normalise


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [
        ("不是", "是"),
        ("没有", "有"),
        ("不正常", "正常"),
        ("不包含", "包含"),
        ("不可以", "可以"),
        ("normal", "no"),
        ("No", "Yes"),
        ("恶性", "良性"),
        ("左肺", "肺"),
        ("Left Lung", "Lung"),
        ("异常", "正常"),
        ("是的，有结节", "是"),  # more than the answer: LLaVA-Med's column shows that rule
        ("", "是"),
    ],
)
def test_opposites_and_parts_are_wrong(predicted: str, gold: str) -> None:
    assert not same_answer(predicted, gold) and not same_answer(gold, predicted)


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [
        ("是。", "是的"),
        ("包含", "是"),
        ("没有！", "否"),
        ("Yes.", "yes"),
        ("是", "Yes"),
        ("X-Ray", "X光"),
        ("核磁共振", "MRI"),
        ("transverse plane", "横断面"),
        ("左侧", "左"),
        ("不正常", "异常"),
        ("肝脏", " 肝脏。"),
        ("T2", "t2"),
    ],
)
def test_synonyms_are_right(predicted: str, gold: str) -> None:
    assert same_answer(predicted, gold) and same_answer(gold, predicted)


def test_no_answer_stands_in_two_sets() -> None:
    sets = [{normalise(answer) for answer in line.split("|")} for line in SYNONYMS]
    assert not [pair for pair in combinations(sets, 2) if pair[0] & pair[1]]


@pytest.mark.parametrize(
    ("predicted", "gold", "right"),
    [
        ("是的", "是", True),
        ("正常", "是", True),  # that tool's rule, which ours does not follow
        ("异常", "不是", True),
        ("X-Ray", "x ray", True),
        ("肺（左）", "肺", True),
        ("不是", "是", False),
        ("存在", "是", False),  # not on its list
        ("左，右", "左 右", True),
    ],
)
def test_lmms_evals_rule(predicted: str, gold: str, right: bool) -> None:
    assert lmms_eval_same(predicted, gold) is right
