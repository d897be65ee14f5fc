"""The quick start's pure parts: what counts as OK, the table, the prompt, and that no child process is left behind."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

import make_models
import reading
import run
import serving
import summary
from processes import StepFailed, child, step

GOLD = {
    "exam_id": "US-DEMO-0007",
    "image": ["a.png", "b.png", "c.png"],
    "text": "这是静态图还是动态序列？",
    "answer": "静态图。",
    "valid_frames": [1],
    "split": "test",
}
MESSAGE = {"text": "静态图", "error_code": 0, "chosen_frames": [[1]], "frame_scores": [[-0.5, 0.25, -1.0]]}


def _result(*messages):
    exams = [summary.exam_entry(GOLD, message, False) for message in messages or (MESSAGE,)]
    stage = {"name": "stage 1", "loss": [2.0, 1.0], "loss_before": 2.0, "loss_after": 1.0, "alpha": 0.5}
    return {"stages": [stage], "exams": exams, "blind": {"test": 0}}


def test_a_stage_is_summed_up_by_its_first_and_last_tenth_without_adr():
    history = [{"lm_loss": 20.0 - step, "loss": 99.0, "alpha": 0.5 + step / 100} for step in range(20)]
    entry = summary.stage_entry("stage 2", [*history, {"train_runtime": 3.0}])
    assert (entry["loss_before"], entry["loss_after"], entry["alpha"]) == (19.5, 1.5, 0.69)
    assert entry["loss"] == [20.0 - step for step in range(20)]
    with pytest.raises(ValueError, match="stage 2: the trainer logged no loss"):
        summary.stage_entry("stage 2", [{"train_runtime": 3.0}])


def test_an_exam_carries_choice_scores_and_truth():
    entry = summary.exam_entry(GOLD, MESSAGE, False)
    assert (entry["chosen"], entry["scores"], entry["valid"]) == ([1], [-0.5, 0.25, -1.0], [1])
    assert (entry["answer"], entry["truth"], entry["split"]) == ("静态图", "静态图。", "test")
    single = summary.exam_entry(
        {**GOLD, "image": ["a.png"]}, {**MESSAGE, "chosen_frames": [[0]], "frame_scores": [[1]]}, False
    )
    assert (single["chosen"], single["scores"]) == ([0], [None])  # nothing was sampled
    assert summary.exam_entry(GOLD, {"text": "ValueError: no", "error_code": 1}, False)["scores"] == [None] * 3


def test_ok_only_if_losses_fell_and_every_answer_names_its_frame():
    assert summary.problems(_result()) == []
    rising = _result()
    rising["stages"][0]["loss_after"] = 2.0
    assert summary.problems(rising) == ["the loss of stage 1 did not fall (2.000 -> 2.000)"]
    broken = _result()
    broken["stages"][0]["loss_after"] = float("nan")
    assert len(summary.problems(broken)) == 1
    found = summary.problems(_result({"text": "ValueError:\nno such frame", "error_code": 1}))
    assert found == ["no answer for US-DEMO-0007, 这是静态图还是动态序列？ ValueError: no such frame"]
    assert "which frame" in summary.problems(_result({"text": "静态图。", "error_code": 0}))[0]
    assert summary.problems({**_result(), "exams": []}) == ["no question was asked"]


def test_table_shows_losses_choice_truth_and_the_blind_baseline():
    text = summary.table(_result(MESSAGE, {**MESSAGE, "text": "动态序列。", "chosen_frames": [[0]]}))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "stage 1 2.000 1.000 0.500" in lines
    assert "US-DEMO-0007 这是静态图还是动态序列？ 2 of 3 -0.50 [0.25] -1.00 静态图" in lines
    assert "held-out exams: answers right 1 of 2 (the most frequent answer, blind: 0)" in lines
    assert "mixed exams: a valid frame was chosen 1 of 2 (by chance 0.7)" in lines
    assert "described: a colour still 1 of 2 (by chance 0.7)" in lines and "a grey cine" not in text
    assert "exams seen in training" not in text
    wrong = summary.table(_result({**MESSAGE, "text": "动态序列。"}))
    assert "动态序列。 (truth: 静态图。)" in " ".join(wrong.split())


def test_columns_count_a_chinese_character_as_two():
    rows = [summary._row((text, 8), ("x", 1)) for text in ("甲状腺", "abcdef")]
    assert rows == ["甲状腺   x", "abcdef   x"]


def test_the_table_shows_each_exam_once_and_all_kinds():
    exams = [
        {**summary.exam_entry(GOLD, MESSAGE, False), "exam_id": f"{kind}{number}", "valid": valid, "split": split}
        for kind, valid, split in (("seen", [1], "train"), ("cine", [0, 1, 2], "test"), ("mixed", [1], "test"))
        for number in (1, 1, 2, 3, 4, 5, 6)
    ]
    names = [entry["exam_id"] for entry in summary.shown(exams)]
    assert names == ["mixed1", "mixed2", "mixed3", "mixed4", "mixed5", "cine1", "cine2", "seen1"]


def test_blind_answers_are_the_most_frequent_of_training():
    def sample(*answers):
        turns = [("<image>\n问？", answers[0]), *(("又？", answer) for answer in answers[1:])]
        return {"conversations": [{"value": value} for turn in turns for value in turn]}

    frequent = summary.most_frequent_answers([sample("甲", "丙"), sample("乙"), sample("乙", "丁", "丁")])
    assert frequent == {"问？": "乙", "又？": "丁"}
    exams = [
        {"question": "问？", "truth": "乙。", "answer": "甲", "split": split} for split in ("test", "test", "train")
    ]
    assert summary.blind_answers(exams, frequent) == {"test": 2, "train": 1}
    assert summary.right_answers(exams) == {}


def test_the_prompt_is_what_llava_writes():
    conversation = pytest.importorskip("llava.conversation")
    from llava_ultra_ext.conversation import templates

    template = templates(conversation.Conversation, conversation.SeparatorStyle)["ultra_v1_zh"].copy()
    template.append_message(template.roles[0], "<image>\n<image>\n亮度如何？")
    template.append_message(template.roles[1], None)
    # Style TWO ends "助手:", like a training prompt up to the answer.
    assert serving.prompt(2, "亮度如何？") == template.get_prompt()


def test_an_unreachable_server_is_an_answer_with_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    message = serving.ask(f"http://127.0.0.1:{serving.free_ports(1)[0]}", [tmp_path / "a.png"], "问？")
    assert message["error_code"] == 1 and "refused" in message["text"]


def test_a_failed_step_is_one_line_with_reason_and_log(tmp_path, capsys):
    log = tmp_path / "logs" / "a.log"
    with pytest.raises(StepFailed) as caught:
        step("stage 1", [sys.executable, "-c", "raise ValueError('two\\nlines: no frame')"], log)
    assert str(caught.value).startswith("stage 1: exit status 1; ValueError: two")
    assert str(caught.value).endswith(f"log: {log}") and "\n" not in str(caught.value)
    step("stage 1", [sys.executable, "-c", "print('fine')"], log)
    assert log.read_text() == "fine\n"


def test_no_grandchild_outlives_its_block(tmp_path):
    log = tmp_path / "a.log"
    with child(["bash", "-c", "sleep 300 & echo $!; wait"], log):
        for _ in range(100):
            if log.read_text().strip():
                break
            time.sleep(0.05)
        grandchild = int(log.read_text())
    for _ in range(100):
        try:
            os.kill(grandchild, 0)
        except ProcessLookupError:
            return
        if "Z" in Path(f"/proc/{grandchild}/stat").read_text().rsplit(")", 1)[1].split()[0]:
            return  # dead; whoever inherited it has not looked yet
        time.sleep(0.05)
    raise AssertionError("still running")


def test_a_folder_of_somebody_else_is_not_emptied(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert run.main(["--out", str(tmp_path)]) == 1
    assert "quickstart: FAILED" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_settings_fit_the_models_and_the_scripts():
    assert int(run.TINY["SAM_IMAGE_SIZE"]) == make_models.SAM["image_size"]
    grid = make_models.CLIP["image_size"] // make_models.CLIP["patch_size"]
    assert make_models.SAM["image_size"] // 16 % grid == 0 and grid**2 == make_models.FRAME_TOKENS
    scripts = "".join((run.ROOT / "scripts" / f"{name}.sh").read_text() for name in ("train", "finetune_lora"))
    names = {*run.TINY, *run.LORA, "EPOCHS", "BASE", "CLIP_TOWER", "SAM_TOWER", "DATA", "IMAGES", "OUT"}
    assert [name for name in sorted(names) if name not in scripts] == []


def test_the_language_model_learns_answers_only(tiny_llama):
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(tiny_llama, legacy=True)
    turns = ["<image>\n<image>\n这是静态图吗？", "静态图。", "亮度？", "较暗。"]
    exam = {"conversations": [{"value": value} for value in turns]}
    for stage, learnt in ((1, "静态图。</s>"), (2, "静态图。</s>较暗。</s>")):
        tokens, labels = reading.row(stage, exam, [7] * 36, tokenizer)
        assert len(tokens) == len(labels) and tokens[0] == tokenizer.bos_token_id
        assert tokens.count(7) >= 36
        kept = [label for label in labels if label != -100]
        assert tokenizer.decode(kept).replace(" ", "") == learnt
    assert json.dumps(exam, ensure_ascii=False).count("<image>") == 2  # the sample itself is untouched
