"""The lmms-eval task: YAML that the tool can read, every frame handed over, and the figures of `llava-ultra score`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from llava_ultra_ext.eval.gold import read_gold
from llava_ultra_ext.eval.metrics import FIGURES
from llava_ultra_ext.eval.predictions import Answers
from llava_ultra_ext.eval.scores import score

FOLDER = Path(__file__).resolve().parents[2] / "playground" / "lmms_eval" / "ultra_exams"
TASKS = {"ultra_exams": None, "ultra_exams_zh": "zh", "ultra_exams_en": "en"}

# Fields of TaskConfig in lmms_eval/api/task.py, release 0.7.3 and the repository's head of 2026-08-06.
KNOWN = """
    task task_alias tag group group_alias dataset_path dataset_name dataset_kwargs training_split validation_split
    test_split fewshot_split full_docs process_results_use_image process_docs doc_to_visual doc_to_text doc_to_target
    doc_to_choice doc_to_messages process_results use_prompt description target_delimiter fewshot_delimiter
    fewshot_config num_fewshot metric_list output_type generation_kwargs repeats filter_list should_decontaminate
    doc_to_decontamination_query cluster_key score_key metadata lmms_eval_specific_kwargs
    model_specific_generation_kwargs model_specific_target_kwargs reasoning_tags auto_strip_thinking"""

GOLD = [
    {
        "question_id": 1,
        "exam_id": "US-1",
        "image": ["0.png", "1.png", "2.png"],
        "text": "请给出诊断。",
        "answer": "甲状腺右叶见低回声结节",
        "lang": "zh",
        "answer_type": "OPEN",
        "site": "甲状腺",
        "valid_frames": [1],
    },
    {"question_id": "z2", "text": "大小？", "answer": "3.5×2.1 cm", "lang": "zh", "image": "2.png"},
    {"question_id": "z3", "text": "是否正常？", "answer": "不正常", "answer_type": "CLOSED", "image": ["0.png"]},
    {
        "question_id": "z4",
        "text": "图 <image> 与图 <image> 相同吗？",
        "answer": "是",
        "answer_type": "CLOSED",
        "image": ["1.png", "0.png"],
    },
    {"question_id": "e1", "text": "What is seen?", "answer": "A small nodule, 3.5 x 2.1 cm, left lobe.", "lang": "en"},
    {"question_id": "e2", "text": "Which organ?", "answer": "the thyroid", "lang": "en", "image": ["1.png"]},
    {"question_id": "e3", "text": "Is it benign?", "answer": "No", "lang": "en", "answer_type": "CLOSED"},
]
ANSWERS = {
    "1": "超声所见甲状腺右叶可见低回声结节",
    "z2": "",
    "z3": "正常",  # a part of the truth, and its opposite
    "z4": "是的。",
    "e1": "small nodule in the left lobe, 3.5 x 2.0 cm, small",  # 3.5×2.0 is one token of 13a, three of char
    "e2": "Thyroid.",
    "e3": "not",
}


class Named(str):
    """What stands behind `!function`, resolved when asked, as lmms-eval does: the file is run anew."""

    @property
    def name(self):
        return self.partition(".")[2]

    def resolve(self):
        module, _, name = self.partition(".")
        spec = importlib.util.spec_from_file_location(module, FOLDER / f"{module}.py")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return getattr(loaded, name)


def _names(node):
    """`name` of each `!function utils.name` below a node."""
    if isinstance(node, Named):
        return [node.name]
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return [name for child in inner for name in _names(child)]


class Loader(yaml.FullLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: Named(loader.construct_scalar(node)))


def _config(task):
    with (FOLDER / f"{task}.yaml").open(encoding="utf-8") as file:
        config = yaml.load(file, Loader)
    return {**_config(Path(config.pop("include")).stem), **config} if "include" in config else config


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A gold file and its pictures, named by the environment. Pictures differ in size and colour."""
    for number, colour in enumerate(("red", "lime", "blue")):
        Image.new("RGB", (20 + number, 16), colour).save(tmp_path / f"{number}.png")
    return _give(tmp_path, monkeypatch, GOLD)


def _give(folder, monkeypatch, rows):
    path = folder / "gold.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setenv("ULTRA_GOLD", str(path))
    monkeypatch.setenv("ULTRA_IMAGES", str(folder))
    return path


@pytest.fixture
def utils(data):
    return _utils()


def _utils():
    spec = importlib.util.spec_from_file_location("utils", FOLDER / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _figures(task, utils):
    """What lmms-eval does with answers: each through `process_results`, each metric's values through its function."""
    config = _config(task)
    rows = [
        config["process_results"].resolve()(doc, [ANSWERS[doc["question_id"]]]) for doc in utils.exam_docs(TASKS[task])
    ]
    assert {metric["metric"] for metric in config["metric_list"]} == {name for row in rows for name in row}
    return {
        metric["metric"]: metric["aggregation"].resolve()([row[metric["metric"]] for row in rows])
        for metric in config["metric_list"]
    }


@pytest.mark.parametrize("task", TASKS)
def test_the_yaml_files_hold_what_lmms_eval_knows(task, data):
    config = _config(task)
    assert config["task"] == task
    assert set(config) <= set(KNOWN.split())
    assert all(set(metric) == {"metric", "aggregation", "higher_is_better"} for metric in config["metric_list"])
    assert len(_names(config)) == 15  # gold file, documents, three doc_to_…, process_results, nine aggregations


@pytest.mark.parametrize("task", TASKS)
def test_every_function_that_is_named_exists(task, data):
    config = _config(task)
    for key, value in config.items():
        assert not isinstance(value, Named) or callable(value.resolve()), key
    assert all(callable(metric["aggregation"].resolve()) for metric in config["metric_list"])
    assert config["dataset_kwargs"]["data_files"]["test"].resolve() == str(data)


def test_answers_are_greedy_and_not_cut_at_a_blank_line():
    settings = _config("ultra_exams")["generation_kwargs"]
    assert [settings[key] for key in ("do_sample", "temperature", "num_beams", "until")] == [False, 0, 1, []]


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_the_figures_are_those_of_llava_ultra_score(lang, data, utils):
    found = _figures(f"ultra_exams_{lang}", utils)
    shown = {"zh": "char", "en": "13a"}[lang]
    model = Answers("m", "m.jsonl", ANSWERS)
    scored = score(data, read_gold(data, lang), [model], tokenizers=[shown], resamples=0)["models"][0]
    wanted = scored["metrics"]["strict"][shown]
    assert {name: found[name] for name in FIGURES} == pytest.approx(wanted, abs=1e-6)
    assert found["closed_accuracy"] == pytest.approx(scored["closed_accuracy"], abs=1e-6)
    assert 0 < found["bleu"] < found["bleu_1"] < 100  # the made-up answers do not compare zeros


def test_figures_computed_by_hand(utils):
    """Chinese: 11 truth characters, all of them among the 16 of the answer; z2 is empty, so 0. z4 is right, z3 not."""
    found = _figures("ultra_exams_zh", utils)
    assert [found[name] for name in ("closed_accuracy", "em")] == [50.0, 0.0]
    assert [found[name] for name in ("precision", "recall")] == pytest.approx([100 * 11 / 16 / 2, 50.0])
    assert _figures("ultra_exams_en", utils)["em"] == 50.0  # "the thyroid" and "Thyroid." are the same text


def test_both_languages_together(data, utils):
    found = _figures("ultra_exams", utils)
    apart = [_figures(f"ultra_exams_{lang}", utils) for lang in ("zh", "en")]
    assert found["f1"] == pytest.approx((apart[0]["f1"] + apart[1]["f1"]) / 2)  # two open questions each
    assert found["closed_accuracy"] == pytest.approx(100 / 3)


def test_a_figure_without_questions_is_not_zero(utils):
    closed = utils.exam_docs()[2]
    row = utils.process_results(closed, ["不正常"])
    assert [row["closed_accuracy"], row["em"], row["bleu"]] == [100.0, None, None]
    assert [utils.mean([row["em"]]), utils.bleu([row["bleu"]])] == [None, None]


def test_every_frame_is_handed_over_in_order(utils):
    exam, single = utils.exam_docs()[:2]
    frames = utils.doc_to_visual(exam)
    assert [frame.size for frame in frames] == [(20, 16), (21, 16), (22, 16)]
    assert [frame.getpixel((0, 0)) for frame in frames] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert [frame.width for frame in utils.doc_to_visual(single)] == [22]  # `image` was a name, not a list
    assert utils.doc_to_visual(utils.exam_docs("en")[0]) == []  # nor was there one here


def test_pictures_look_as_llava_ultra_sees_them(tmp_path, monkeypatch):
    picture = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    picture.save(tmp_path / "clear.png")
    Image.new("I;16", (8, 8), 4095).save(tmp_path / "deep.png")
    _give(tmp_path, monkeypatch, [{**GOLD[0], "image": ["clear.png", "deep.png"], "valid_frames": None}])
    utils = _utils()
    clear, deep = utils.doc_to_visual(utils.exam_docs()[0])
    assert [clear.getpixel((0, 0)), deep.getpixel((0, 0))] == [(0, 0, 0), (255, 255, 255)]


def test_the_question_is_the_prompt(utils):
    exam, _, _, inside = utils.exam_docs("zh")
    options = {"pre_prompt": "甲", "post_prompt": "乙"}
    assert utils.doc_to_text(exam) == "请给出诊断。"
    assert utils.doc_to_text(exam, options) == "甲请给出诊断。乙"
    assert utils.doc_to_text(exam, {"image_tokens": True}) == "<image>\n<image>\n<image>\n请给出诊断。"
    assert utils.doc_to_text(inside) == "图  与图  相同吗？"
    assert utils.doc_to_text(inside, {"image_tokens": True}).count("<image>") == 2


def test_messages_hold_frames_where_the_prompt_has_them(utils):
    exam, _, _, inside = utils.exam_docs("zh")
    [turn] = utils.doc_to_messages(exam)
    assert turn["role"] == "user"
    assert [part["url"].width if part["type"] == "image" else part["text"] for part in turn["content"]] == [
        20,
        21,
        22,
        "请给出诊断。",
    ]
    [turn] = utils.doc_to_messages(inside, {"post_prompt": "只答是或否。"})
    assert [part["url"].width if part["type"] == "image" else part["text"] for part in turn["content"]] == [
        "图",
        21,
        "与图",
        20,
        "相同吗？只答是或否。",
    ]


def test_documents_keep_what_results_are_grouped_by(utils):
    first, second = utils.exam_docs("zh")[:2]
    assert [first[key] for key in ("question_id", "exam_id", "site", "answer_type")] == ["1", "US-1", "甲状腺", "OPEN"]
    assert set(first) == set(second)  # a table needs the same columns everywhere
    assert [len(utils.exam_docs(lang)) for lang in (None, "zh", "en")] == [7, 4, 3]


def test_without_a_gold_file_the_variable_is_named(monkeypatch):
    monkeypatch.delenv("ULTRA_GOLD", raising=False)
    with pytest.raises(ValueError, match=r"ULTRA_GOLD is not set.*export ULTRA_GOLD="):
        _ = _utils().gold_file


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": "。"}, "line 1: `answer` is empty"),
        ({"image": ["0.png", "9.png"]}, "line 1: picture 2 of 2 does not"),
    ],
)
def test_faults_are_found_before_anything_is_answered(changed, message, data, tmp_path, monkeypatch):
    _give(tmp_path, monkeypatch, [{**GOLD[0], **changed}])
    with pytest.raises(ValueError, match=message) as fault:
        _ = _utils().gold_file
    assert "甲状腺" not in str(fault.value)


def test_a_task_of_a_language_needs_questions_of_it(data, tmp_path, monkeypatch):
    _give(tmp_path, monkeypatch, GOLD[:2])
    file = _config("ultra_exams_en")["dataset_kwargs"]["data_files"]["test"]
    with pytest.raises(ValueError, match=r"no question .* It holds: zh"):
        file.resolve()
