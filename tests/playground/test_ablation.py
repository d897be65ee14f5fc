"""The ablation: data variants, figures by hand, intervals, and that results of different settings are never mixed."""

from __future__ import annotations

import json

import pytest

import ablate
import exam_data
import measures
import rows
import steps
import table
from rows import Row


def record(exam: str, key: str, answer: str, valid: list[int], count: int = 3) -> dict:
    return {
        "question_id": f"{exam}-{key}-q1",
        "exam_id": exam,
        "image": [f"{exam}/{place}.png" for place in range(count)],
        "text": "？",
        "answer": answer,
        "lang": "zh",
        "answer_type": "CLOSED" if key == "lesion_seen" else "OPEN",
        "content_type": key,
        "valid_frames": valid,
    }


GOLD = [
    record("A", "findings", "低回声结节", [1]),
    record("A", "lesion_seen", "有", [1]),
    record("B", "findings", "囊肿", [0, 2], 4),
    record("B", "lesion_seen", "是", [0, 2], 4),
    record("N", "lesion_seen", "没有", [0, 1, 2]),
    record("M", "lesion_seen", "否", [0, 1, 2]),
]


@pytest.fixture
def files(tmp_path):
    said = {"A": ("有", 1), "B": ("是", 3), "N": ("否", 0), "M": ("是", 0)}
    answers = []
    for line in GOLD:
        text, frame = said[line["exam_id"]]
        answers.append({"question_id": line["question_id"], "text": text, "metadata": {"frames": [[frame]]}})
    for name, lines in (("gold", GOLD), ("answers", answers)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "answers.jsonl", tmp_path / "gold.jsonl"


def test_frame_choice_counts_lesion_exams_and_specificity_normal_ones(files):
    # A: frame 1 is valid. B: frame 3 is not. N says no, M says yes of a normal exam.
    assert measures.exam_choices(*files) == [
        {"exam_id": "A", "frames": 3, "valid": 1, "hit": 1.0},
        {"exam_id": "B", "frames": 4, "valid": 2, "hit": 0.0},
    ]
    assert measures.specificity(*files) == 50.0
    assert measures.normal_exams(GOLD) == {"N", "M"}


def test_lesions_shown_counts_each_lesion_of_an_exam_with_several(files, tmp_path):
    # B is asked twice about its last frame, which shows the second lesion of two; A has one lesion and does not count
    truth = [
        {"exam_id": "A", "lesions": [{}], "frames": [{"visibility": [1.0]}] * 3},
        {
            "exam_id": "B",
            "lesions": [{}, {}],
            "frames": [{"visibility": [0.9, 0.1]}] * 3 + [{"visibility": [0.2, 0.8]}],
        },
        *({"exam_id": name, "lesions": [], "frames": [{"visibility": []}] * 3} for name in "NM"),
    ]
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(line) + "\n" for line in truth))
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    for line in lines:
        line["image"] = [f"{line['exam_id']}/{place:02}.png" for place in range(len(line["image"]))]
    files[1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert measures.lesions_shown(*files, tmp_path / "truth.jsonl") == [0.5, 0.5]


def test_bins_of_frames_and_of_valid_shares(files):
    exams = measures.exam_choices(*files)
    assert measures.mean_by(exams, "frames", (2, 4, 6)) == [
        {"low": 2, "high": 4, "exams": 1, "frame_choice": 100.0, "chance": pytest.approx(100 / 3)},
        {"low": 4, "high": 6, "exams": 1, "frame_choice": 0.0, "chance": 50.0},
    ]
    assert [row["exams"] for row in measures.mean_by(exams, "share", (0.0, 0.4, 1.01))] == [1, 1]


def test_intervals_are_students_t_over_seeds():
    # mean 2, s = 1, t(0.975, 2) = 4.3027: half 4.3027 / sqrt(3) = 2.4841.
    assert table.interval([1.0, 2.0, 3.0]) == {"mean": 2.0, "low": -0.4841, "high": 4.4841}
    assert table.interval([7.0]) == {"mean": 7.0, "low": None, "high": None}


def test_a_row_of_the_table_has_the_contracts_keys():
    result = {"name": "best", "seed": 0, "exams": [], "log": {"alpha": 0.5}, "frame_choice": 90.0, "f1": 80.0}
    result["kept_frames"] = 1.5
    (row,) = table.summarise({"best": [result, {**result, "seed": 1, "frame_choice": 94.0}]}, frame_tokens=36)
    assert row["frame_tokens"] == {"mean": 54.0, "low": 54.0, "high": 54.0}
    assert (row["name"], row["seeds"], row["f1"]["mean"], row["log_alpha"]["mean"]) == ("best", 2, 80.0, 0.5)
    # s = sqrt(8), t(0.975, 1) = 12.7062: half 12.7062 * 2 = 25.4124.
    assert row["frame_choice"] == {"mean": 92.0, "low": 66.5876, "high": 117.4124}
    named = "full func_a no_sampler all_frames first random oracle no_sam concat no_site best"
    assert not set(named.split()) - set(rows.ROWS)


def test_settings_stand_in_a_table_of_their_own_below_the_default_of_the_same_seeds():
    def summary(name: str, f1: float) -> dict:
        figures = {key: table.interval([f1 if key == "f1" else 1.0]) for key in (*table.COLUMNS, "chance")}
        return {"name": name, "title": rows.ALL[name].title, "seeds": 1, **figures}

    both = {"rows": [summary("best", 70.0), summary("lambda_10", 71.0)], "beside": [summary("best", 72.0)]}
    about = {"command": "c", "commit": "d", "machine": "e"}
    lines = table.markdown({**both, "about": about}).splitlines()
    shown = [line.split("|")[1].strip() + " " + line.split("|")[4].strip() for line in lines if "| 1 |" in line]
    ours, other = rows.ALL["best"].title, rows.ALL["lambda_10"].title
    assert shown == [f"{ours} 70.0", f"{ours} 72.0", f"{other} 71.0"]
    alone = table.markdown({"rows": both["rows"][:1], "beside": [], "about": about})
    assert alone.count(ours) == 1 and "Settings" not in alone


def sample(exam: str, findings: str) -> dict:
    turns = [{"from": "human", "value": "<image>\n<image>\n所见？"}, {"from": "gpt", "value": findings}]
    return {"id": exam, "exam_id": exam, "image": ["1.png", "2.png"], "findings": findings, "conversations": turns}


def test_previous_works_give_the_text_to_every_frame():
    made = exam_data.by_frame([{**sample("A", "囊肿"), "valid_frames": [0]}])
    assert [(one["id"], one["image"]) for one in made] == [("A-f0", "1.png"), ("A-f1", "2.png")]
    assert all(one["conversations"][0]["value"] == "<image>\n所见？" for one in made)
    assert all(one["conversations"][1]["value"] == "囊肿" for one in made)
    assert not any("findings" in one or "valid_frames" in one for one in made)


def test_swapped_findings_belong_to_another_exam_and_answers_stay():
    records = [sample(exam, f"所见{exam}") for exam in "ABCDE" for _ in range(2)]
    swapped = exam_data.swap_findings(records)
    assert all(one["findings"] != f"所见{one['exam_id']}" for one in swapped)
    assert sorted(one["findings"] for one in swapped) == sorted(one["findings"] for one in records)
    assert [one["conversations"] for one in swapped] == [one["conversations"] for one in records]
    assert len({(one["exam_id"], one["findings"]) for one in swapped}) == 5  # one text an exam


def test_short_questions_become_one_chat_and_whole_texts_stay_apart():
    def asked(kind: str, question: str, answer: str) -> dict:
        turns = [{"from": "human", "value": f"<image>\n<image>\n{question}"}, {"from": "gpt", "value": answer}]
        return {**sample("A", "囊肿"), "id": f"A-{kind}", "conversations": turns}

    records = [asked("findings", "所见？", "囊肿"), asked("echo", "回声？", "无回声"), asked("size", "大小？", "12mm")]
    before = json.dumps(records, ensure_ascii=False)
    made = exam_data.chats(records, {"A-findings": "findings", "A-echo": "echo", "A-size": "size"})
    assert [one["id"] for one in made] == ["A-findings", "A-chat"]
    assert made[0]["conversations"] == records[0]["conversations"]
    turns = [turn["value"] for turn in made[1]["conversations"]]
    assert turns[0].startswith("<image>\n<image>\n") and "<image>" not in "".join(turns[1:])
    pairs = {
        (question.replace("<image>\n", ""), answer) for question, answer in zip(turns[::2], turns[1::2], strict=True)
    }
    assert pairs == {("回声？", "无回声"), ("大小？", "12mm")}
    assert json.dumps(records, ensure_ascii=False) == before


def test_stage_1_learns_captions_and_findings_of_exams_of_one_frame(tmp_path):
    folder = tmp_path / "phantom" / exam_data.PAIRS
    folder.mkdir(parents=True)
    turns = [{"from": "human", "value": "<image>\n描述。"}, {"from": "gpt", "value": "左叶囊肿"}]
    pair = {"id": "P", "exam_id": "P", "image": ["frames/P/00.png"], "findings": "左叶见囊肿。", "conversations": turns}
    (folder / "stage1.json").write_text(json.dumps([{**pair, "valid_frames": [0]}]))
    made = json.loads(exam_data.stage1_file(tmp_path / "data", tmp_path / "phantom").read_text(encoding="utf-8"))
    assert [one["conversations"][1]["value"] for one in made] == ["左叶囊肿", "左叶见囊肿。"]
    assert all(one["image"] == ["pairs/frames/P/00.png"] for one in made) and len({one["id"] for one in made}) == 2
    assert not any("findings" in one or "valid_frames" in one for one in made)


def test_single_frames_keep_their_own_validity(tmp_path):
    folder = tmp_path / "with_site"
    folder.mkdir(parents=True)
    lines = [*GOLD, record("A", "size", "12mm", [1])]
    (folder / "test_gold.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = exam_data.gold_file(tmp_path, Row("", "none", data="frame"))
    made = exam_data.read_lines(path)
    assert {line["content_type"] for line in made} == {"findings", "lesion_seen"}  # size is not asked
    assert len(made) == 2 * len(GOLD) and all(isinstance(line["image"], str) for line in made)
    for line in made:
        source = next(one for one in GOLD if line["question_id"].startswith(one["question_id"]))
        place = source["image"].index(line["image"])
        assert line["valid_frames"] == ([0] if place in source["valid_frames"] else [])
    of_a = [[line["image"] for line in made if line["question_id"].startswith(f"A-{key}")] for key in ("find", "les")]
    assert of_a[0] == of_a[1] and len(of_a[0]) == 2  # the same frames for each of its questions


def test_results_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "row" / "settings.json"
    steps.same_settings(path, {"scale": {"exams": 5}, "seed": 0})
    steps.same_settings(path, {"scale": {"exams": 5}, "seed": 0})
    with pytest.raises(ValueError, match=r"scale \{'exams': 5\} there, \{'exams': 6\} now.*remove that folder"):
        steps.same_settings(path, {"scale": {"exams": 6}, "seed": 0})


def test_a_second_run_in_one_folder_is_refused_until_the_first_has_ended(tmp_path, capsys):
    given = ["--scale", "smoke", "--out", str(tmp_path)]
    with steps.alone(tmp_path):
        assert ablate.main(given) == 1
    assert f"{tmp_path}: another run works there. Wait for it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with steps.alone(tmp_path):
        pass


def test_an_unknown_row_is_refused_before_anything_is_made(tmp_path, capsys):
    assert ablate.main(["--rows", "best,worst", "--out", str(tmp_path / "out")]) == 1
    assert "no row worst. Known: table, defaults, beyond, all, full, func_a" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
