"""What a phantom's report says of the organ around the findings, or of an organ without any.

Our choice of sentences, after the usual Chinese reports. None says anything that could be read as a lesion's attribute.
"""

from __future__ import annotations

ORGAN: dict[str, tuple[str, ...]] = {
    "thyroid": (
        "甲状腺大小形态正常，包膜完整。",
        "甲状腺形态正常，轮廓清楚。",
        "甲状腺大小正常，轮廓光整。",
    ),
    "breast": (
        "乳腺各层结构显示清楚，腺体厚度正常。",
        "乳腺皮肤及皮下脂肪层清楚，腺体结构层次分明。",
        "乳腺腺体层结构清晰，导管未见扩张。",
    ),
    "liver": (
        "肝脏大小形态正常，包膜光整。",
        "肝脏形态正常，表面平整。",
        "肝脏轮廓清楚，包膜连续。",
    ),
    "kidney": (
        "肾脏大小形态正常，皮髓质分界清楚。",
        "肾脏轮廓清楚，集合系统未见分离。",
        "肾脏形态正常，包膜完整，肾窦居中。",
    ),
    "uterus": (
        "子宫形态正常，内膜居中。",
        "子宫轮廓清楚，内膜线清晰。",
        "子宫大小正常，内膜厚度正常。",
    ),
    "prostate": (
        "前列腺形态正常，包膜完整。",
        "前列腺轮廓清楚，内外腺分界清楚。",
        "前列腺大小正常，两侧对称。",
    ),
}
"""Site -> sentences that hold with and without findings."""

REST: dict[str, tuple[str, ...]] = {
    "thyroid": ("余甲状腺实质回声均匀。", "其余腺体回声未见异常。"),
    "breast": ("余腺体回声未见异常。", "其余乳腺组织回声分布正常。"),
    "liver": ("余肝实质回声均匀。", "其余肝脏回声未见异常。"),
    "kidney": ("余肾实质回声未见异常。", "其余肾脏结构清楚。"),
    "uterus": ("余肌层回声均匀。", "其余子宫肌层未见异常。"),
    "prostate": ("余前列腺实质回声未见异常。", "其余腺体回声均匀。"),
}
"""Site -> sentences behind the findings."""

CLEAR: dict[str, tuple[str, ...]] = {
    "thyroid": (
        "实质回声均匀，未见明显结节。",
        "腺体回声分布均匀，未见占位性病变。",
        "腺体内未见异常回声。",
    ),
    "breast": (
        "腺体内未见明显肿块。",
        "腺体回声分布均匀，未见异常回声。",
        "未见占位性病变。",
    ),
    "liver": (
        "实质回声均匀，未见明显占位。",
        "实质光点细密均匀，未见异常回声。",
        "肝内未见占位性病变。",
    ),
    "kidney": (
        "实质回声正常，未见明显占位。",
        "皮质回声均匀，未见异常回声。",
        "肾内未见占位性病变。",
    ),
    "uterus": (
        "肌层回声均匀，未见明显占位。",
        "前后壁肌层回声均匀，未见异常回声。",
        "肌层内未见占位性病变。",
    ),
    "prostate": (
        "腺体回声均匀，未见明显结节。",
        "各区回声正常，未见异常回声。",
        "腺体内未见占位性病变。",
    ),
}
"""Site -> sentences that hold without findings only."""

CLEAR_FLOW = ("CDFI：未见异常血流信号。", "CDFI示血流信号分布正常。")
"""Said in some exams without findings whose frames of the organ have the colour box on."""

NORMAL_DIAGNOSES = ("{site}未见明显异常。", "{site}超声未见异常。", "{site}未见占位性病变。")
