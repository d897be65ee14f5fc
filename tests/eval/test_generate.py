"""`llava-ultra answer` on a trained small model: batches, exams, resuming after SIGKILL, end markers, stock LLaVA."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from run_llava import environment
from trained import Trained

from llava_ultra_ext import cli
from llava_ultra_ext.eval import generate
from llava_ultra_ext.eval.answerer import Answerer, Decoding
from llava_ultra_ext.eval.questions import Question
from llava_ultra_ext.model.opening import open_model

pytestmark = pytest.mark.usefixtures("armed")

ASKED = ("", "简要回答。", "请详细说明，并给出诊断意见。", "Is there a nodule?", "图像质量如何？")


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def told(path: Path) -> list[tuple[Any, str, Any]]:
    """What an answers file says, without the random answer ids."""
    return [(row["question_id"], row["text"], row["metadata"]) for row in read_lines(path)]


@pytest.fixture(scope="module")
def question_file(trained_lora: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """35 questions: exams of 1, 2, 3, 4 and 7 frames, a single picture, text only, five times."""
    rows = []
    for asked in ASKED:
        for sample in json.loads((trained_lora.exams / "train.json").read_text(encoding="utf-8")):
            text = sample["conversations"][0]["value"].replace("<image>", "").strip() + asked
            rows.append({"question_id": len(rows), "text": text, **{k: sample[k] for k in ("image",) if k in sample}})
    return write_lines(tmp_path_factory.mktemp("questions") / "questions.jsonl", rows)


def arguments(trained: Trained, questions: Path, answers: Path, *more: object) -> list[str]:
    return [
        *("--model-path", str(trained.lora), "--model-base", str(trained.base), "--image-folder", str(trained.exams)),
        *("--question-file", str(questions), "--answers-file", str(answers), "--max_new_tokens", "40"),
        *map(str, more),
    ]


@pytest.fixture(scope="module")
def unbroken(trained_lora: Trained, question_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of one run, one question at a time."""
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    assert generate.main(arguments(trained_lora, question_file, path, "--batch-size", 1)) == 0
    return path


def test_one_line_a_question_in_the_files_order(unbroken: Path, question_file: Path) -> None:
    answers, questions = read_lines(unbroken), read_lines(question_file)
    assert [row["question_id"] for row in answers] == list(range(35))
    assert [row["prompt"] for row in answers] == [row["text"] for row in questions]
    assert {row["model_id"] for row in answers} == {"llava-lora"}
    assert len({row["answer_id"] for row in answers}) == 35
    assert set(answers[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert len({row["text"] for row in answers}) >= 2  # a model that says one thing would hide most faults


def test_metadata_says_which_frame_and_every_score(unbroken: Path, question_file: Path) -> None:
    for answer, question in zip(read_lines(unbroken), read_lines(question_file), strict=True):
        if "image" not in question:
            assert answer["metadata"] == {}
            continue
        count = 1 if isinstance(question["image"], str) else len(question["image"])
        [scores], [frames] = answer["metadata"]["frame_scores"], answer["metadata"]["frames"]
        assert len(scores) == count
        assert frames == [scores.index(max(scores))]


@pytest.mark.parametrize("size", [4, 35])
def test_answers_do_not_depend_on_the_batch_size(
    size: int, unbroken: Path, trained_lora: Trained, question_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    generate.main(arguments(trained_lora, question_file, path, "--batch-size", size))
    assert [row[:2] for row in told(path)] == [row[:2] for row in told(unbroken)]
    for found, expected in zip(told(path), told(unbroken), strict=True):
        assert found[2].get("frames") == expected[2].get("frames")


def test_the_answer_is_what_llavas_own_calls_give(unbroken: Path, trained_lora: Trained, question_file: Path) -> None:
    """Question 3 (4 frames) by hand: LLaVA's tokenizer_image_token and generate, no batch, no padding, no mask."""
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import tokenizer_image_token

    opened = open_model(str(trained_lora.lora), str(trained_lora.base))
    question = read_lines(question_file)[3]
    conversation = conv_templates["ultra_v1_zh"].copy()
    conversation.append_message(conversation.roles[0], "<image>\n" * 4 + question["text"])
    conversation.append_message(conversation.roles[1], None)
    ids = tokenizer_image_token(conversation.get_prompt(), opened.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
    pictures = [Image.open(trained_lora.exams / name) for name in question["image"]]
    frames = opened.image_processor.preprocess(pictures, return_tensors="pt")["pixel_values"]
    output = opened.model.generate(ids[None], images=frames[None], do_sample=False, max_new_tokens=40)
    text = opened.tokenizer.batch_decode(output, skip_special_tokens=True)[0].strip()
    assert text and read_lines(unbroken)[3]["text"] == text
    assert read_lines(unbroken)[3]["metadata"]["frames"] == [opened.model.last_choices[0].frames]


def test_killed_in_the_middle_nothing_is_lost_or_doubled(
    unbroken: Path, trained_lora: Trained, question_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "llava_ultra_ext.eval.generate"]
    command += arguments(trained_lora, question_file, path, "--batch-size", 1)
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = read_lines(path) if path.read_bytes().endswith(b"\n") else read_lines(path)[:-1]
    assert 3 <= len(kept) < 35
    generate.main(arguments(trained_lora, question_file, path, "--batch-size", 1))
    assert told(path) == told(unbroken)
    assert read_lines(path)[: len(kept)] == kept  # kept as they were, answer ids included


def test_a_torn_last_line_is_answered_again(
    unbroken: Path, trained_lora: Trained, question_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    whole = unbroken.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:33]) + whole[33][: len(whole[33]) // 2])  # cuts a Chinese character too
    generate.main(arguments(trained_lora, question_file, path))
    assert told(path) == told(unbroken)


def test_a_finished_file_needs_no_model(
    unbroken: Path, trained_lora: Trained, question_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "open_model", None)
    before = unbroken.read_bytes()
    assert generate.main(arguments(trained_lora, question_file, unbroken)) == 0
    assert unbroken.read_bytes() == before


def test_answers_of_another_model_or_question_are_not_taken(
    unbroken: Path, trained_lora: Trained, question_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    write_lines(other, [{**read_lines(unbroken)[0], "model_id": "llava-other"}])
    with pytest.raises(
        ValueError, match=r"holds answers of model llava-other, this one is llava-lora. Write to another"
    ):
        generate.main(arguments(trained_lora, question_file, other))
    write_lines(other, [{**read_lines(unbroken)[5], "prompt": "别的问题"}])
    with pytest.raises(ValueError, match="question 5 had another text or image when it was answered"):
        generate.main(arguments(trained_lora, question_file, other))
    answered = read_lines(unbroken)[5]
    write_lines(other, [{**answered, "metadata": {**answered["metadata"], "image": ["other.png"]}}])
    with pytest.raises(ValueError, match="question 5 had another text or image when it was answered"):
        generate.main(arguments(trained_lora, question_file, other))
    write_lines(other, [{"text": "x"}])
    with pytest.raises(ValueError, match="line 1 is no answer"):
        generate.main(arguments(trained_lora, question_file, other))


def test_chunks_cover_the_file_once(unbroken: Path, trained_lora: Trained, question_file: Path, tmp_path: Path) -> None:
    found = []
    for index in range(3):
        path = tmp_path / f"{index}.jsonl"
        generate.main(arguments(trained_lora, question_file, path, "--num-chunks", 3, "--chunk-idx", index))
        found += [row[:2] for row in told(path)]
    assert found == [row[:2] for row in told(unbroken)]


def test_oracle_follows_the_valid_frames_and_needs_them(trained_lora: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained_lora.lora, tmp_path / "llava-oracle-lora")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "ultra_adr_strategy": "oracle"}))
    sample = json.loads((trained_lora.exams / "train.json").read_text(encoding="utf-8"))[4]
    row = {"question_id": "a", "text": "请描述。", "image": sample["image"]}
    oracle = Trained(trained_lora.base, trained_lora.stage1, folder, trained_lora.exams)
    with pytest.raises(ValueError, match=r"question a has no `valid_frames`.*oracle"):
        generate.main(arguments(oracle, write_lines(tmp_path / "q.jsonl", [row]), tmp_path / "a.jsonl"))
    rows = [{**row, "question_id": frame, "valid_frames": [frame]} for frame in (5, 2)]
    rows.insert(1, {"question_id": "text", "text": "需要空腹吗？"})
    generate.main(arguments(oracle, write_lines(tmp_path / "q.jsonl", rows), tmp_path / "a.jsonl"))
    assert [row["metadata"].get("frames") for row in read_lines(tmp_path / "a.jsonl")] == [[[5]], None, [[2]]]


def test_two_groups_have_a_choice_each(trained_lora: Trained, tmp_path: Path) -> None:
    names = json.loads((trained_lora.exams / "train.json").read_text(encoding="utf-8"))[4]["image"][:5]
    row = {"question_id": 1, "text": "左：<image><image>右：<image><image><image>哪侧有结节？", "image": names}
    generate.main(arguments(trained_lora, write_lines(tmp_path / "q.jsonl", [row]), tmp_path / "a.jsonl"))
    metadata = read_lines(tmp_path / "a.jsonl")[0]["metadata"]
    left, right = metadata["frame_scores"]
    assert (len(left), len(right)) == (2, 3)
    assert metadata["frames"] == [[left.index(max(left))], [2 + right.index(max(right))]]


def test_a_model_of_the_same_name_does_not_continue_the_answers(
    trained_lora: Trained, question_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.jsonl"
    rows = read_lines(question_file)[:2]
    questions = write_lines(tmp_path / "q.jsonl", rows)
    generate.main(arguments(trained_lora, questions, path))
    before = path.read_bytes()
    twin = shutil.copytree(trained_lora.lora, tmp_path / "again" / trained_lora.lora.name)
    other = Trained(trained_lora.base, trained_lora.stage1, twin, trained_lora.exams)
    monkeypatch.setattr(generate, "open_model", None)
    with pytest.raises(ValueError, match=r"made by another run \(--model-path was .*, is .*again/llava-lora\)"):
        generate.main(arguments(other, questions, path))
    with pytest.raises(ValueError, match=r"made by another run \(--num_beams was 1, is 2\)"):
        generate.main(arguments(trained_lora, questions, path, "--num_beams", 2))
    assert generate.main(arguments(trained_lora, questions, path, "--batch-size", 1)) == 0
    assert path.read_bytes() == before


# --- end markers ---


@pytest.fixture
def scripted(trained_lora: Trained, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An Answerer in the template `ultra_chatml_zh` whose language model says what it is told, row by row."""
    from llava.conversation import conv_templates

    opened = open_model(str(trained_lora.lora), str(trained_lora.base))
    steps: list[int] = []

    def say(*texts: str) -> tuple[Answerer, list[int]]:
        scripts = [opened.tokenizer(text, add_special_tokens=False).input_ids for text in texts]

        def lm_head(hidden: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*hidden.shape[:2], opened.model.config.vocab_size)
            for row, script in enumerate(scripts):
                logits[row, -1, script[min(len(steps), len(script) - 1)]] = 1.0
            steps.append(1)
            return logits

        monkeypatch.setattr(opened.model.lm_head, "forward", lm_head)
        template = conv_templates["ultra_chatml_zh"]
        return Answerer(opened, template, str(trained_lora.exams), Decoding(max_new_tokens=200)), steps

    return say


def test_a_batch_stops_at_the_end_marker_of_its_last_row(scripted: Any) -> None:
    short, long = "结节<|im_end|>", "未见明显血流信号，边界清晰，形态规则，建议随访复查。<|im_end|>"
    answerer, steps = scripted(short + "乱" * 60, long + "乱" * 60)
    asked = [Question("a", "请描述该甲状腺超声图像，并给出诊断意见。"), Question("b", "诊断？")]
    answers = answerer.answer(asked)
    assert [answer.text for answer in answers] == ["结节", "未见明显血流信号，边界清晰，形态规则，建议随访复查。"]
    assert len(steps) == len(answerer._tokenizer(long, add_special_tokens=False).input_ids)


def test_a_row_that_ended_with_eos_waits_for_the_others(scripted: Any) -> None:
    answerer, steps = scripted("结节</s>", "边界清晰，建议随访复查。<|im_end|>" + "乱" * 60)
    answers = answerer.answer([Question("a", "一"), Question("b", "二")])
    assert [answer.text for answer in answers] == ["结节", "边界清晰，建议随访复查。"]
    assert len(steps) < 60


def test_the_configs_padding_side_is_put_back(scripted: Any) -> None:
    answerer, _ = scripted("结节</s>")
    answerer.answer([Question("a", "一")])
    assert answerer._model.config.tokenizer_padding_side == "right"


# --- stock LLaVA ---


@pytest.fixture(scope="module")
def stock_llava(tiny_llama: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock LLaVA folder: `tiny_llama` with a CLIP tower and a random linear projector."""
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("stock") / "llava-stock"
    values = json.loads((tiny_llama / "config.json").read_text())
    values.pop("model_type")
    vision = {
        "mm_vision_tower": str(tiny_clip),
        "mm_hidden_size": 32,
        "mm_projector_type": "linear",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "use_mm_proj": True,
    }
    torch.manual_seed(0)
    config = LlavaConfig(**{**values, **vision})
    model = LlavaLlamaForCausalLM.from_pretrained(str(tiny_llama), config=config)
    model.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(tiny_llama), use_fast=False).save_pretrained(str(folder))
    return folder


def test_stock_llava_answers_as_llavas_model_vqa_calls_it(
    stock_llava: Path, trained_lora: Trained, tmp_path: Path
) -> None:
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import process_images, tokenizer_image_token

    names = ["frames/single.png", "frames/US-TEST-0001_001.png", "frames/US-TEST-0002_001.png"]
    rows = [{"question_id": i, "text": "What is this?" * (i + 1), "image": name} for i, name in enumerate(names)]
    questions = write_lines(tmp_path / "q.jsonl", [*rows, {"question_id": 3, "text": "Hello"}])
    common = ["--model-path", str(stock_llava), "--image-folder", str(trained_lora.exams)]
    common += ["--question-file", str(questions), "--max_new_tokens", "12", "--conv-mode", "vicuna_v1"]
    for size in (1, 4):
        generate.main([*common, "--answers-file", str(tmp_path / f"{size}.jsonl"), "--batch-size", str(size)])
    assert told(tmp_path / "1.jsonl") == told(tmp_path / "4.jsonl")

    opened = open_model(str(stock_llava))
    for row, answer in zip(rows, read_lines(tmp_path / "1.jsonl")[:3], strict=True):
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], "<image>\n" + row["text"])
        conversation.append_message(conversation.roles[1], None)
        ids = tokenizer_image_token(conversation.get_prompt(), opened.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
        picture = Image.open(trained_lora.exams / row["image"]).convert("RGB")
        pixels = process_images([picture], opened.image_processor, opened.model.config)
        output = opened.model.generate(ids[None], images=pixels, do_sample=False, max_new_tokens=12)
        assert answer["text"] == opened.tokenizer.batch_decode(output, skip_special_tokens=True)[0].strip()
        assert answer["metadata"] == {"image": [row["image"]]}


def test_stock_llava_takes_no_exam(
    stock_llava: Path, trained_lora: Trained, question_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"question 1 has 2 pictures, but --model-path is a stock LLaVA model"):
        generate.main(
            [
                *("--model-path", str(stock_llava), "--image-folder", str(trained_lora.exams)),
                *("--question-file", str(question_file), "--answers-file", str(tmp_path / "a.jsonl")),
            ]
        )


def test_a_stock_folder_needs_llava_in_its_name(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match="the folder's name has no 'llava' in it"):
        open_model(str(tiny_llama))


# --- what is refused before the model loads ---


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--conv-mode", "vicuna_zh"], r"--conv-mode vicuna_zh: no such template. Known: .*ultra_v1_zh"),
        (["--num-chunks", "2", "--chunk-idx", "2"], r"--num-chunks 2 --chunk-idx 2: chunks are counted from 0"),
        (["--batch-size", "0"], "--batch-size 0: must be 1 or more"),
        (["--num_beams", "0"], "--num_beams 0: must be 1 or more"),
        (["--temperature", "-1"], "--temperature -1.0: must be 0"),
        (["--device", "cuda:7"], "--device cuda:7: no CUDA device is usable here"),
        (["--model-path", "nowhere"], "--model-path nowhere: no config.json could be read"),
    ],
)
def test_bad_flags(
    more: list[str],
    message: str,
    trained_lora: Trained,
    question_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generate, "open_model", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        generate.main([*arguments(trained_lora, question_file, tmp_path / "a.jsonl"), *more])
    assert not (tmp_path / "a.jsonl").exists()


def test_the_command_says_one_line_and_fails(
    trained_lora: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "q.json"
    questions.write_text('[{"question_id": 1}]')
    assert cli.main(["answer", *arguments(trained_lora, questions, tmp_path / "a.jsonl")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"llava-ultra answer: --question-file {questions}: holds a JSON list; JSON lines are needed"
    )
    assert not (tmp_path / "a.jsonl").exists()
