"""What is said of a picture or an exam of BUSI, of which nothing is known but its class: benign, malignant or normal.

Our choice of words: a class's typical signs (良性: 边界清晰, 形态规则), in varied wordings and order. They are not read
off the picture. No size, place, echo or number: BUSI does not say them, and its benign lesions are cysts as well as
solid nodules.
"""

from __future__ import annotations

import random

from llava_ultra_ext.data.sources.phantom import background, words

SITE = words.SITES["breast"]

OPENINGS = ("乳腺内见{}", "乳腺腺体内可见{}", "乳腺内探及{}", "所示乳腺见{}")
NOUNS = {"benign": ("结节", "占位", "病灶"), "malignant": ("肿块", "占位", "病灶")}
MARGINS = {
    "benign": ("边界清晰", "边界清楚", "边缘光整", "边缘光滑"),
    "malignant": ("边界不清", "边界欠清晰", "边缘不光整", "边缘模糊"),
}
SHAPES = {key: words.CLAUSES["shape"][value] for key, value in (("benign", "regular"), ("malignant", "irregular"))}
CONCLUSIONS = {
    "benign": ("考虑良性", "良性可能", "倾向良性"),
    "malignant": ("考虑恶性", "恶性可能", "倾向恶性"),
}
"""Class -> wordings. Of margin, shape and conclusion, no wording of one class stands in the other's."""


def findings(label: str, choice: random.Random) -> str:
    """超声所见 of a class, other words at each call."""
    if label == "normal":
        return choice.choice(background.ORGAN["breast"]) + choice.choice(background.CLEAR["breast"])
    signs = [choice.choice(MARGINS[label]), choice.choice(SHAPES[label])]
    choice.shuffle(signs)
    opening = choice.choice(OPENINGS).format(choice.choice(NOUNS[label]))
    joint = choice.choice(("，", "。病灶", "。其"))
    return f"{opening}{joint}{'，'.join(signs)}，{choice.choice(CONCLUSIONS[label])}。"


def diagnosis(label: str, choice: random.Random) -> str:
    """诊断 of a class."""
    if label == "normal":
        return choice.choice(background.NORMAL_DIAGNOSES).format(site=SITE)
    return f"{SITE}{choice.choice(NOUNS[label])}，{choice.choice(CONCLUSIONS[label])}。"
