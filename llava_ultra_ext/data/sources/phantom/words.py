"""The words of a phantom's report: for each value of `case`, the wordings that a sonographer may choose from.

Our choice of words, after the usual Chinese reports (超声所见, 诊断). Wordings of two values of an attribute never hold
one another, and no wording names a vessel, reverberation or calipers (`case.DISTRACTORS`).
"""

from __future__ import annotations

from llava_ultra_ext.data.sites import load_sites
from llava_ultra_ext.data.sources.phantom import case
from llava_ultra_ext.data.sources.phantom.case import Lesion

Wordings = dict[str, tuple[str, ...]]

SITES = {key: load_sites().name(key) for key in case.SITES}
"""Key of a site -> its name, as all records carry it."""

PLACES: dict[str, Wordings] = {
    "thyroid": {"right": ("甲状腺右叶", "甲状腺右侧叶"), "left": ("甲状腺左叶", "甲状腺左侧叶")},
    "breast": {"shallow": ("乳腺腺体浅层", "乳腺浅层"), "deep": ("乳腺腺体深层", "乳腺深层")},
    "liver": {"near_capsule": ("肝脏近包膜处", "肝实质近包膜处"), "deep": ("肝脏深部", "肝实质深部")},
    "kidney": {
        "upper": ("肾脏上极", "肾上极"),
        "middle": ("肾脏中部", "肾中部"),
        "lower": ("肾脏下极", "肾下极"),
    },
    "uterus": {"anterior": ("子宫前壁", "子宫前壁肌层"), "posterior": ("子宫后壁", "子宫后壁肌层")},
    "prostate": {"transition": ("前列腺移行区", "前列腺移行带"), "peripheral": ("前列腺外周区", "前列腺外周带")},
}
"""Site -> place -> wordings; the first one stands in the diagnosis."""

ECHOES = {"anechoic": "无回声", "hypoechoic": "低回声", "isoechoic": "等回声", "hyperechoic": "高回声"}

NOUNS: Wordings = {
    "thyroid": ("结节", "结节", "区"),
    "breast": ("结节", "肿块", "团块"),
    "liver": ("团块", "结节", "占位"),
    "kidney": ("团块", "占位", "结节"),
    "uterus": ("团块", "结节", "占位"),
    "prostate": ("结节", "团块", "区"),
}
"""Site -> what an echo is said of: 低回声 + 结节."""

CLAUSES: dict[str, Wordings] = {
    "margin": {
        "smooth": ("边界清晰", "边界清楚", "边缘光整", "边缘光滑"),
        "spiculated": ("边缘毛刺状", "边缘不光整呈毛刺样", "边缘见毛刺样改变", "边缘呈毛刺状"),
    },
    "shape": {
        "regular": ("形态规则", "形态规整", "外形规则"),
        "irregular": ("形态不规则", "形态欠规则", "外形不规则"),
    },
    "texture": {
        "homogeneous": ("内部回声均匀", "内部回声均质", "内部回声分布均匀"),
        "heterogeneous": ("内部回声不均匀", "内部回声杂乱", "内部回声分布不均匀"),
    },
    "calcification": {
        "none": ("内未见钙化", "内未见明显钙化", "内无钙化灶"),
        "micro": ("内见点状强回声（微钙化）", "内见多发微钙化", "内可见细点状强回声，考虑微钙化"),
        "coarse": ("内见粗大钙化", "内可见粗大强回声钙化", "内见粗大钙化斑"),
    },
    "posterior": {
        "none": ("后方回声无明显改变", "后方回声未见明显变化", "后方回声无特殊"),
        "enhancement": ("后方回声增强", "后方回声明显增强", "后方见回声增强"),
        "shadow": ("后方伴声影", "后方见声影", "后方回声衰减伴声影"),
    },
    "flow": {
        "none": ("未见明显血流信号", "内部及周边未见血流信号", "未探及血流信号"),
        "peripheral": ("周边见血流信号", "周边可见环绕血流信号", "周边探及血流信号"),
        "internal": ("内见血流信号", "内部可见血流信号", "内部探及血流信号"),
    },
}
"""Attribute -> value -> clauses; those of flow stand behind one of `DOPPLER`."""

COARSE_WITH_SHADOW = ("内见粗大钙化伴后方声影", "内可见粗大强回声钙化，后方伴声影")
"""Says calcification and posterior at once."""

DOPPLER = ("CDFI：", "CDFI示", "彩色多普勒：")

SIZES = ("大小约{0}mm×{1}mm", "大小约{0}×{1}mm", "范围约{0}mm×{1}mm")

KINDS: dict[str, Wordings] = {
    "thyroid": {
        "cyst": ("囊肿", "囊性结节，考虑囊肿"),
        "benign_nodule": ("结节，考虑良性", "良性结节可能"),
        "suspicious_nodule": ("结节，考虑恶性", "结节，恶性可能"),
    },
    "breast": {
        "cyst": ("囊肿", "囊肿可能"),
        "fibroadenoma": ("纤维腺瘤", "结节，考虑纤维腺瘤"),
        "suspicious_mass": ("肿块，考虑恶性", "肿块，恶性可能"),
    },
    "liver": {
        "cyst": ("囊肿", "囊性占位，考虑囊肿"),
        "hemangioma": ("血管瘤", "占位，考虑血管瘤"),
        "suspicious_mass": ("占位，考虑恶性", "占位，恶性可能"),
    },
    "kidney": {
        "cyst": ("囊肿", "囊性占位，考虑囊肿"),
        "angiomyolipoma": ("错构瘤", "占位，考虑错构瘤"),
        "suspicious_mass": ("占位，考虑恶性", "占位，恶性可能"),
    },
    "uterus": {
        "cyst": ("囊肿", "囊肿可能"),
        "fibroid": ("肌瘤", "结节，考虑肌瘤"),
        "suspicious_mass": ("占位，考虑恶性", "占位，恶性可能"),
    },
    "prostate": {
        "cyst": ("囊肿", "囊肿可能"),
        "hyperplasia": ("增生结节", "结节，考虑增生"),
        "suspicious_nodule": ("结节，考虑恶性", "结节，恶性可能"),
    },
}
"""Site -> kind of lesion -> what the diagnosis says behind its place."""

ANSWERS: dict[str, dict[str, str]] = {
    "echo": ECHOES,
    "margin": {"smooth": "光整", "spiculated": "毛刺状"},
    "texture": {"homogeneous": "均匀", "heterogeneous": "杂乱"},
    "calcification": {"none": "未见钙化", "micro": "微钙化", "coarse": "粗大钙化"},
    "shape": {"regular": "规则", "irregular": "不规则"},
    "posterior": {"none": "无明显改变", "enhancement": "增强", "shadow": "声影"},
    "flow": {"none": "未见血流", "peripheral": "周边血流", "internal": "内部血流"},
}
"""Attribute -> value -> the answer to a question about it.

Our choice: one wording a value, so that a figure of one attribute measures what was seen and not which synonym was
chosen; and with few characters in common where ultrasound's words allow it, for F1 counts characters.
"""


def answer(attribute: str, lesion: Lesion, site: str) -> str:
    """The answer to a question about one attribute.

    Args:
        attribute: a key of `ANSWERS`, ``place`` or ``size``.
        lesion: of whom it is said.
        site: a key of `SITES`.
    """
    if attribute == "size":
        return "{}mm×{}mm".format(*lesion.size_mm)
    if attribute == "place":
        return PLACES[site][lesion.place][0].removeprefix(SITES[site]).removeprefix("腺体")
    return ANSWERS[attribute][getattr(lesion, attribute)]
