"""Normal or abnormal from the text: negation, lists, suspicion, devices."""

from __future__ import annotations

import pytest

from llava_ultra_ext.data.sources.chest_findings import is_abnormal


@pytest.mark.parametrize(
    "text",
    [
        "心脏大小正常，肺部清晰。没有局灶性固结、气胸或胸腔积液。",
        "肺部清晰，无气胸或胸腔积液。",
        "没有任何明显的异常，如结节或肿块。",
        "没有病灶巩固，气胸或胸腔积液。",
        "已经排除了肺炎、积液、水肿的存在。",
        "对急性异常都是阴性的。",
        "心脏大小和肺部血管充血都在正常范围内。",
        "气胸和明确的胸腔积液都没有。",
        "两肺清晰，膨胀。",
    ],
)
def test_normal(text: str) -> None:
    assert not is_abnormal(text)


@pytest.mark.parametrize(
    "text",
    [
        "左下叶有一个钙化的肉芽肿。",
        "肺部清晰，但胸椎有退行性改变。",
        "没有积液，但心脏增大。",
        "心脏肿大没有变化。",
        "不能排除浸润的可能。",
        "左侧基底无气症。",
        "没有其他异常，除了轻度的脊柱侧弯。",
        "肺容量低。",
        "右上象限有手术夹子。",
        "PICC尖端位于SVC。",
        "心脏比正常情况下略大。",
    ],
)
def test_abnormal(text: str) -> None:
    assert is_abnormal(text)
