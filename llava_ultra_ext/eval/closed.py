"""Closed answers: right when they say the same as the truth, never because one is a part of the other.

An answer is compared after `normalise`, and by sets of answers that say the same. 是 is a part of 不是, 有 of 没有 and
正常 of 不正常, so a substring test would call opposites equal. Sets hold whole answers: "有结节" is in none.
"""

from __future__ import annotations

import functools
import re
import string

from llava_ultra_ext.eval.normalize import normalise

SYNONYMS = (
    "是|是的|对|对的|正确|有|有的|存在|包含|包括|可以|能|能够|会|属于|yes|yeah|yep|true|correct",
    "否|不|不是|不是的|不对|错误|没有|没|无|不存在|不包含|不包括|不可以|不能|不能够|不会|不属于|no|nope|false|incorrect",
    "正常|是正常的|无异常|没有异常|未见异常|未见明显异常|normal",
    "异常|不正常|有异常|存在异常|abnormal",
    "良性|良性的|良性病变|benign",
    "恶性|恶性的|恶性病变|malignant",
    "X光|X射线|X线|X光片|X-ray|xray",
    "CT|CT扫描|计算机断层扫描",
    "MRI|MR|核磁|核磁共振|磁共振|磁共振成像|核磁共振成像",
    "超声|B超|超声图像|ultrasound",
    "横断面|横切面|横断位|轴位|轴状面|transverse plane|transverse|axial plane|axial",
    "冠状面|冠状位|coronal plane|coronal",
    "矢状面|矢状位|sagittal plane|sagittal",
    "左|左侧|左边|left|left side",
    "右|右侧|右边|right|right side",
    "都是|都有|两者都是|两者都有|both",
)
"""Our choice of answers that say the same, in both languages; yes and no from SLAKE's and lmms-eval's wordings.

正常 stands apart from 是: "is it abnormal?" is answered by 不是 where "is it normal?" is answered by 是.
"""


@functools.cache
def _meanings() -> dict[str, str]:
    return {normalise(answer): line.split("|")[0] for line in SYNONYMS for answer in line.split("|")}


def meaning(text: str) -> str:
    """The normalised answer, or the word that stands for its set of `SYNONYMS`."""
    plain = normalise(text)
    return _meanings().get(plain, plain)


def same_answer(predicted: str, gold: str) -> bool:
    """Whether a closed answer is right."""
    return meaning(predicted) == meaning(gold)


# lmms-eval's rule for SLAKE (tasks/slake, July 2026), for comparison with figures made by that tool. It reads 正常 as
# yes and 异常 as no, and drops what stands in brackets.
_LMMS = {
    "yes": frozenset(("yes", "yeah", "yep", "true", "是", "是的", "有", "包含", "可以", "能", "会", "正常")),
    "no": frozenset(("no", "nope", "false", "否", "不是", "没有", "无", "不包含", "不能", "不会", "不可以"))
    | {"不正常", "异常"},
    "xray": frozenset(("x ray", "xray")),
}
_LMMS_MARKS = string.punctuation + "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、；：《》【】"
_LMMS_SPACES = str.maketrans(dict.fromkeys(_LMMS_MARKS, " "))
_BRACKETS = re.compile(r"\([^)]*\)|（[^）]*）")


def lmms_eval_meaning(text: str) -> str:
    """An answer as lmms-eval's ``slake_zh`` and ``slake_en`` compare it."""
    plain = " ".join(_BRACKETS.sub(" ", text.strip().lower()).translate(_LMMS_SPACES).split())
    return next((word for word, answers in _LMMS.items() if plain in answers), plain)


def lmms_eval_same(predicted: str, gold: str) -> bool:
    """lmms-eval's exact match, for open and closed answers alike."""
    return lmms_eval_meaning(predicted) == lmms_eval_meaning(gold)
