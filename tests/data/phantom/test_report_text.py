"""Findings and diagnoses are read back by a parser of their own, which knows nothing of the writer's tables."""

from __future__ import annotations

import re
from typing import Any

import pytest
from random_cases import VOCABULARY, a_case

from llava_ultra_ext.data.sources.phantom import words
from llava_ultra_ext.data.sources.phantom.case import SITES, Case
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings, draw_case
from llava_ultra_ext.data.sources.phantom.report_text import caption, diagnosis, findings
from llava_ultra_ext.data.sources.phantom.sites import SITE

PATTERNS = {
    "echo": {
        "anechoic": "无回声(?:结节|区|团块|肿块|占位)",
        "hypoechoic": "低回声(?:结节|区|团块|肿块|占位)",
        "isoechoic": "等回声(?:结节|区|团块|肿块|占位)",
        "hyperechoic": "高回声(?:结节|区|团块|肿块|占位)",
    },
    "margin": {"smooth": "边界清|边缘光", "spiculated": "毛刺"},
    "shape": {"regular": "[形外][态形]规[则整]", "irregular": "[形外][态形](?:不|欠)规"},
    "texture": {"homogeneous": "内部回声(?:分布)?均", "heterogeneous": "内部回声(?:分布)?(?:不均|杂乱)"},
    "calcification": {"none": "内[未无][^，；。]*钙化", "micro": "微钙化", "coarse": "粗大"},
    "posterior": {
        "none": "后方回声(?:无|未见)",
        "enhancement": "后方(?:见)?回声(?:明显)?增强",
        "shadow": "后方[^，；。未无]*声影",
    },
    "flow": {
        "none": "未[^，；。]*血流",
        "peripheral": "周边[^，；。未]*血流",
        "internal": "[：示，]内[^，；。未]*血流",
    },
}
PLACES = {
    "thyroid": {"right": "右侧?叶", "left": "左侧?叶"},
    "breast": {"shallow": "浅层", "deep": "深层"},
    "liver": {"near_capsule": "近包膜", "deep": "深部"},
    "kidney": {"upper": "上极", "middle": "中部", "lower": "下极"},
    "uterus": {"anterior": "前壁", "posterior": "后壁"},
    "prostate": {"transition": "移行", "peripheral": "外周"},
}
KINDS = {
    "cyst": "囊肿",
    "benign_nodule": "良性",
    "fibroadenoma": "纤维腺瘤",
    "hemangioma": "血管瘤",
    "angiomyolipoma": "错构瘤",
    "fibroid": "肌瘤",
    "hyperplasia": "增生",
    "suspicious_nodule": "恶性",
    "suspicious_mass": "恶性",
}
CAPTIONED = {
    "echo": PATTERNS["echo"],
    "margin": {"smooth": "边缘光整", "spiculated": "边缘毛刺状"},
    "texture": {"homogeneous": "，回声均匀", "heterogeneous": "，回声杂乱"},
    "calcification": {"none": "未见钙化", "micro": "微钙化", "coarse": "粗大钙化"},
    "posterior": {"none": "后方无明显改变", "enhancement": "后方增强", "shadow": "后方声影"},
}
OPENS = re.compile("[无低等高]回声(?:结节|区|团块|肿块|占位)")
UNNAMED = ("血管", "管腔", "混响", "卡尺", "游标", "测量", "伪像", "标尺")


def only(text: str, patterns: dict[str, str]) -> str:
    """The one value whose pattern is found; a text that says two of them, or none, is no description."""
    found = [value for value, pattern in patterns.items() if re.search(pattern, text)]
    assert len(found) == 1, (text, found)
    return found[0]


def read_attributes(text: str, site: str) -> list[dict[str, Any]]:
    """The lesions of a findings text, in order."""
    parts: list[str] = []
    for sentence in re.split("(?<=。)", re.sub(r"\d\. ", "", text)):
        if OPENS.search(sentence):
            parts.append(sentence)
        elif re.match("其[^余]|病灶|该病灶|CDFI|彩色多普勒", sentence) and parts:
            parts[-1] += sentence
    lesions = []
    for part in parts:
        longer, shorter = map(int, re.findall(r"约(\d+)(?:mm)?×(\d+)mm", part)[0])
        read = {name: only(part, values) for name, values in PATTERNS.items()}
        lesions.append({**read, "place": only(part, PLACES[site]), "size": (longer, shorter)})
    return lesions


def truth(case: Case) -> list[dict[str, Any]]:
    names = (*VOCABULARY, "place")
    return [{**{name: getattr(lesion, name) for name in names}, "size": lesion.size_mm} for lesion in case.lesions]


def test_every_attribute_of_every_lesion_is_read_back() -> None:
    lesions = 0
    for seed in range(600):
        case = a_case(seed)
        assert read_attributes(findings(case), case.site) == truth(case), (seed, findings(case))
        lesions += len(case.lesions)
    assert lesions > 700


def test_drawn_exams_are_read_back_too_and_every_site_has_its_words() -> None:
    for key, site in SITE.items():
        assert set(words.PLACES[key]) == set(site.places) and set(words.KINDS[key]) == set(site.lesions)
    for seed in range(150):
        case = draw_case(f"e{seed}", seed, PhantomSettings(two_lesions=0.4))
        assert read_attributes(findings(case), case.site) == truth(case), (seed, findings(case))


def test_a_caption_says_place_echo_and_detail_of_each_lesion_with_one_wording() -> None:
    wordings: dict[Any, set[str]] = {}
    for seed in range(300):
        case = a_case(seed)
        text = caption(case)
        if not case.lesions:
            assert text == f"{words.SITES[case.site]}未见病灶。"
            continue
        read = [
            {name: only(part, values) for name, values in {**CAPTIONED, "place": PLACES[case.site]}.items()}
            for part in text.split("；")
        ]
        assert read == [{name: getattr(lesion, name) for name in (*CAPTIONED, "place")} for lesion in case.lesions]
        for part, lesion in zip(text.rstrip("。").split("；"), case.lesions, strict=True):
            values = (case.site, lesion.place, *(getattr(lesion, name) for name in CAPTIONED))
            wordings.setdefault(values, set()).add(part)
    assert len(wordings) > 200 and all(len(said) == 1 for said in wordings.values())


@pytest.mark.parametrize("name", list(VOCABULARY))
def test_every_value_of_an_attribute_changes_the_text(name: str) -> None:
    texts = {findings(a_case(3, 1, "breast", **{name: value})) for value in VOCABULARY[name]}
    assert len(texts) == len(VOCABULARY[name])


def test_a_diagnosis_says_place_and_kind_of_each_lesion_in_order() -> None:
    for seed in range(300):
        case = a_case(seed)
        said = [part for part in diagnosis(case).rstrip("。").split("；") if re.search("未见", part) is None]
        read = [(only(part, PLACES[case.site]), [k for k, word in KINDS.items() if word in part]) for part in said]
        assert [place for place, _ in read] == [lesion.place for lesion in case.lesions]
        for (_, kinds), lesion in zip(read, case.lesions, strict=True):
            assert lesion.kind in kinds and len({KINDS[kind] for kind in kinds}) == 1, diagnosis(case)


def test_doppler_is_named_where_the_frame_of_the_lesion_has_it() -> None:
    seen = set()
    for seed in range(200):
        case = a_case(seed, 1)
        (best,) = (frame for frame in case.frames if frame.visibility == (1.0,))
        assert bool(re.search("CDFI|多普勒", findings(case))) == best.doppler
        seen.add(best.doppler)
    assert seen == {True, False}


def test_a_normal_exam_says_that_nothing_is_there_and_names_its_organ() -> None:
    names = dict(zip(SITES, ("甲状腺", "乳腺", "肝", "肾", "子宫", "前列腺"), strict=True))
    for seed in range(200):
        case = a_case(seed, 0)
        text = findings(case)
        assert names[case.site] in text and "未见" in text and not OPENS.search(text)
        assert diagnosis(case).startswith(names[case.site]) and "未见" in diagnosis(case)


def test_no_text_names_a_distractor_or_another_organ() -> None:
    others = {
        "thyroid": "甲状腺",
        "breast": "乳腺",
        "liver": "肝",
        "kidney": "肾",
        "uterus": "子宫",
        "prostate": "前列腺",
    }
    for seed in range(400):
        case = a_case(seed)
        text = findings(case) + diagnosis(case).replace("血管瘤", "")
        assert [word for word in UNNAMED if word in text] == []
        assert [site for site, name in others.items() if name in text and site != case.site] == []
        if all(lesion.posterior != "shadow" for lesion in case.lesions):
            assert "声影" not in text


def test_texts_follow_the_seed_and_vary_with_it() -> None:
    cases = [a_case(seed, 1, "liver", echo="hypoechoic") for seed in range(200)]
    texts = [findings(case) for case in cases]
    assert texts == [findings(case) for case in cases]
    assert len(set(texts)) == 200
    firsts = {re.sub(r"\d+", "", text.split("。")[0])[:14] for text in texts}
    assert len(firsts) >= 10
    orders = {
        tuple(sorted(("边|边缘", "形", "后方"), key=lambda word: re.search(word, text).start())) for text in texts
    }  # type: ignore[union-attr]
    assert len(orders) >= 4
    normal = {findings(a_case(seed, 0, "liver")) for seed in range(200)}
    assert len(normal) >= 15
