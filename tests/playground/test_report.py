"""The quick start's page: what a reader has to find on it is there, and nothing is loaded from elsewhere."""

from __future__ import annotations

import json
import re

import pytest

import report


@pytest.fixture
def result(exam_folder):
    names = [f"frames/US-TEST-0003_{number:03d}.png" for number in (1, 2, 3)]
    return {
        "stages": [{"name": "Stage 1", "loss": [4.0, 2.0, 1.0], "loss_before": 4.0, "loss_after": 1.0, "alpha": 0.512}],
        "exams": [
            {
                "exam_id": "US-DEMO-0001",
                "images": names,
                "scores": [0.0, 2.0, 0.0],
                "chosen": [1],
                "valid": [1],
                "question": "这是静态图还是动态序列？",
                "answer": "静态图",
                "truth": "静态图。",
                "split": "test",
            },
            {
                "exam_id": "US-DEMO-0002",
                "images": names[:1],
                "scores": [None],
                "chosen": [0],
                "valid": [0],
                "question": "<b>亮度</b>如何？",
                "answer": "较暗。",
                "truth": "较亮。",
                "split": "train",
            },
        ],
        "environment": {"torch": "2.x"},
    }


def _cards(page):
    return re.findall(r'<section class="exam">.*?</section>', page, re.S)


def test_each_exam_has_a_card_that_marks_the_chosen_frame(result, exam_folder):
    cards = _cards(report.render(result, exam_folder))
    assert ["US-DEMO-0001" in cards[0], "US-DEMO-0002" in cards[1], len(cards)] == [True, True, 2]
    figures = re.findall(r"<figure.*?</figure>", cards[0], re.S)
    assert ["chosen" in figure for figure in figures] == [False, True, False]
    assert [">valid<" in figure for figure in figures] == [False, True, False]
    widths = [float(value) for value in re.findall(r"width:([\d.]+)%", cards[0])]
    assert widths == [9.7, 80.7, 9.7]  # softmax of the z-scores of 0, 2, 0: -.71, 1.41, -.71
    assert "not scored" in cards[1]


def test_answers_stand_beside_the_truth_and_are_judged(result, exam_folder):
    cards = _cards(report.render(result, exam_folder))
    assert "静态图。" in cards[0] and ">match<" in cards[0] and ">differs<" not in cards[0]
    assert ">differs<" in cards[1]
    assert "&lt;b&gt;亮度" in cards[1]


def test_the_page_is_self_contained(result, exam_folder):
    page = report.render(result, exam_folder)
    assert page.count("data:image/jpeg;base64,") == 4
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http" not in page
    assert "4.000" in page and "1.000" in page and "alpha 0.512" in page


def test_the_curve_falls_with_the_loss(result, exam_folder):
    points = re.search(r'<polyline points="([^"]+)"', report.render(result, exam_folder)).group(1)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights == sorted(heights) and heights[0] < heights[1] < heights[2]  # the y axis of SVG points down


def test_questions_about_one_exam_share_a_card(result, exam_folder):
    result["exams"].append({**result["exams"][0], "question": "第二问？"})
    cards = _cards(report.render(result, exam_folder))
    assert len(cards) == 2 and cards[0].count("<figure") == 3 and "第二问？" in cards[0]


def test_choices_are_counted_against_chance(result):
    assert report.choice_record(result["exams"]) == (1, 1, pytest.approx(1 / 3))  # all frames valid: no choice to judge
    result["exams"][0]["chosen"] = [2]
    assert report.choice_record(result["exams"])[:2] == (0, 1)


def test_a_lost_picture_and_an_infinite_loss_do_not_lose_the_page(result, exam_folder):
    result["exams"][0]["images"][2] = "frames/none.png"
    result["stages"][0]["loss"][1] = float("nan")
    page = report.render(result, exam_folder)
    assert page.count("picture not found") == 1 and page.count("<polyline") == 2


def test_a_missing_key_is_named(result, exam_folder):
    del result["exams"][1]["truth"]
    with pytest.raises(ValueError, match=r"exams\[1\] lacks truth"):
        report.render(result, exam_folder)


def test_command_line_writes_the_file(result, exam_folder, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    out = tmp_path / "out/report.html"
    report.main(["--result", str(tmp_path / "result.json"), "--out", str(out), "--images", str(exam_folder)])
    assert "US-DEMO-0002" in out.read_text(encoding="utf-8")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [("是。", " 是", True), ("YBR格式", "ｙｂｒ格式。", True), ("是", "不是", False), ("共30帧", "共120帧", False)],
)
def test_same_answer(answer, truth, same):
    assert report.same_answer(answer, truth) is same
