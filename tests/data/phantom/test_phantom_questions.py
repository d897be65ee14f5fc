"""Questions: the right ones are asked, their answers are true, and the site stands in half of them."""

from __future__ import annotations

import random

from random_cases import a_case

from llava_ultra_ext.data.sources.exams import is_closed
from llava_ultra_ext.data.sources.phantom import words
from llava_ultra_ext.data.sources.phantom.questions import ATTRIBUTES, CLOSED, KEYS, OPEN, questions, rephrased
from llava_ultra_ext.data.sources.phantom.report_text import diagnosis, findings
from llava_ultra_ext.data.sources.site_cue import drop_site
from llava_ultra_ext.data.sources.source import Item
from llava_ultra_ext.eval.closed import same_answer


def answers(seed: int, *, lesions: int = 1, **given: str) -> dict[str, str]:
    return {question.key: question.answer for question in questions(a_case(seed, lesions, **given))}


def test_answers_of_one_lesion_by_hand() -> None:
    case = a_case(
        1, 1, "thyroid", echo="hypoechoic", margin="spiculated", shape="irregular", texture="heterogeneous",
        calcification="micro", posterior="shadow", flow="internal",
    )  # fmt: skip
    (lesion,) = case.lesions
    asked = {question.key: question for question in questions(case)}
    assert tuple(asked) == KEYS
    found = {key: question.answer for key, question in asked.items() if key in ATTRIBUTES}
    assert found == {
        "echo": "低回声", "margin": "毛刺状", "texture": "杂乱", "calcification": "微钙化", "shape": "不规则",
        "posterior": "声影", "flow": "内部血流", "place": {"right": "右叶", "left": "左叶"}[lesion.place],
        "size": f"{lesion.size_mm[0]}mm×{lesion.size_mm[1]}mm",
    }  # fmt: skip
    assert asked["findings"].answer == findings(case) and asked["diagnosis"].answer == diagnosis(case)
    assert {question.answer_type for key, question in asked.items() if key in OPEN} == {"OPEN"}


def test_closed_answers_follow_the_lesion_and_are_bare_yes_and_no() -> None:
    truths = {
        "micro_seen": ("calcification", {"micro": "是", "none": "否", "coarse": "否"}),
        "margin_smooth": ("margin", {"smooth": "是", "spiculated": "否"}),
        "texture_even": ("texture", {"homogeneous": "是", "heterogeneous": "否"}),
        "flow_seen": ("flow", {"internal": "是", "peripheral": "是", "none": "否"}),
    }
    for key, (name, expected) in truths.items():
        for value, truth in expected.items():
            for seed in range(20):
                said = answers(seed, **{name: value})[key]
                assert same_answer(said, truth), (key, value, said)
                assert is_closed(said)
    assert {answers(seed, lesions=0)["lesion_seen"] for seed in range(30)} == {"否", "没有"}
    assert {answers(seed)["lesion_seen"] for seed in range(30)} == {"是", "有"}


def test_a_yes_fits_its_question() -> None:
    for seed in range(100):
        for question in questions(a_case(seed)):
            if question.answer_type == "CLOSED":
                assert ("有没有" in question.text) == (question.answer in ("有", "没有")), question


def test_a_normal_exam_is_asked_three_questions() -> None:
    assert list(answers(4, lesions=0)) == ["findings", "diagnosis", "lesion_seen"]


def test_two_lesions_are_asked_what_holds_for_both() -> None:
    agreed = 0
    for seed in range(100):
        case = a_case(seed, 2)
        asked = {question.key: question.answer for question in questions(case)}
        assert not set(asked) & set(ATTRIBUTES)
        margins = {lesion.margin for lesion in case.lesions}
        assert ("margin_smooth" in asked) == (len(margins) == 1)
        if len(margins) == 1:
            agreed += 1
            assert asked["margin_smooth"] == ("是" if margins == {"smooth"} else "否")
    assert 20 < agreed < 80


def test_half_of_the_questions_name_the_site_and_all_read_without_it() -> None:
    named = total = 0
    for seed in range(200):
        case = a_case(seed)
        site = words.SITES[case.site]
        asked = questions(case)
        here = sum(site in question.text for question in asked)
        assert abs(2 * here - len(asked)) <= 1
        named, total = named + here, total + len(asked)
        items = [Item(n, "e", (), q.text, q.answer, "zh", q.answer_type, site=site) for n, q in enumerate(asked)]
        for item in drop_site(items)[0]:
            assert site not in item.question
            assert any(start in item.question for start in ("该超声图像", "这组超声图像")), item.question
    assert 0.48 < named / total < 0.52


def test_phrasings_vary_and_follow_the_seed() -> None:
    for key in KEYS:
        texts = {q.text for seed in range(200) for q in questions(a_case(seed, 1, "liver")) if q.key == key}
        assert len(texts) == 4 * len(OPEN[key] if key in OPEN else CLOSED[key])
    assert questions(a_case(9, 1)) == questions(a_case(9, 1))
    first = rephrased(a_case(9, 1), "findings", random.Random(0))
    assert first == rephrased(a_case(9, 1), "findings", random.Random(0))
    assert len({rephrased(a_case(9, 1), "findings", random.Random(seed)) for seed in range(100)}) == 12


def test_answers_of_two_values_differ() -> None:
    for table in words.ANSWERS.values():
        assert len(set(table.values())) == len(table)
