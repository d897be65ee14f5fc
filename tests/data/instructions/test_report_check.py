"""Inventions are found: numbers, units, sides, sites, lesions, what is denied; what the report says is let through."""

from __future__ import annotations

import pytest

from llava_ultra_ext.data.instructions.report_check import claims, invention
from llava_ultra_ext.data.sites import load_sites

FINDINGS = (
    "甲状腺右叶中部见一低回声结节，大小约12mm×8mm，边界清晰，内未见钙化，CDFI：周边见血流信号。"
    "左叶可见无回声囊肿，直径0.5cm。双侧颈部未见肿大淋巴结。"
)
DIAGNOSIS = "甲状腺右叶结节，TI-RADS 3类。甲状腺左叶囊肿。"
KNOWN = claims(load_sites(), FINDINGS, DIAGNOSIS, "甲状腺")


@pytest.mark.parametrize(
    "answer",
    [
        FINDINGS,
        DIAGNOSIS,
        "右叶可见低回声结节，约1.2cm×0.8cm，边界清晰，无钙化。",
        "左叶囊肿，直径5 mm。",
        "右叶结节大小为12×8mm。",
        "TI-RADS 3类。",
        "甲状腺。",
        "颈部未见肿大淋巴结。",
        "结节位于甲状腺右叶。",
        "这是一组超声图像。",
    ],
)
def test_what_the_report_says_passes(answer: str) -> None:
    assert invention(answer, KNOWN, load_sites()) == ("", "")


@pytest.mark.parametrize(
    ("answer", "reason", "claim"),
    [
        ("右叶结节大小约15mm。", "number", "15mm"),
        ("右叶结节大小约12cm。", "number", "120mm"),
        ("TI-RADS 4a类。", "number", "4a"),
        ("右叶见两枚结节。", "number", "两枚"),
        ("肝脏未见结节。", "site", "liver"),
        ("右叶见一肿块。", "word", "肿块"),
        ("右叶结节，考虑恶性。", "word", "恶性"),
        ("右叶见高回声结节。", "word", "高回声"),
        ("右叶见结节，内见钙化。", "denied", "钙化"),
        ("未见结节。", "denied", "结节"),
        ("颈部见肿大淋巴结。", "denied", "肿大"),
        ("左叶见一低回声结节。", "other_side", "左低回声"),
        ("右叶囊肿。", "other_side", "右囊肿"),
    ],
)
def test_inventions_are_found(answer: str, reason: str, claim: str) -> None:
    assert invention(answer, KNOWN, load_sites()) == (reason, claim)


def test_a_side_that_no_report_names() -> None:
    known = claims(load_sites(), "膀胱充盈，壁光滑。", "", "膀胱")
    assert invention("左侧壁光滑。", known, load_sites()) == ("side", "左")
