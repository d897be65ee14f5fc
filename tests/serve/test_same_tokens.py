"""One model, asked in the training process, from the LoRA and the merged folder, by the worker and by generate."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from run_llava import armed_command, environment, flags
from trained import training_flags

NEW_TOKENS = 24
WAIT_S = 240
STORY = Path(__file__).with_name("train_and_answer.py")


@dataclass(frozen=True)
class Story:
    """A trained model and what its own process answered."""

    base: Path
    lora: Path
    merged: Path
    exams: Path
    questions: list[dict[str, Any]]
    tokens: list[list[int]]


@pytest.fixture(scope="module")
def story(
    tiny_llama: Path, tiny_clip: Path, tiny_sam: Path, exam_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Story:
    out = tmp_path_factory.mktemp("same-tokens")
    records = json.loads((exam_folder / "train.json").read_text(encoding="utf-8"))
    questions = [
        {"question_id": f"{r['id']}-{turn}", "image": r["image"], "text": text.replace("<image>\n", "")}
        for r in records
        if isinstance(r.get("image"), list)
        for turn, text in enumerate(t["value"] for t in r["conversations"] if t["from"] == "human")
    ]
    (out / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    lora = out / "llava-lora"
    values = {
        **training_flags(tiny_llama, exam_folder, tiny_clip, tiny_sam, lora),
        **{"version": "ultra_v1_zh", "lora_enable": True, "lora_r": 16, "num_train_epochs": 20, "learning_rate": 1e-2},
    }
    variables = {"QUESTIONS": str(out / "questions.json"), "ANSWERS": str(out / "answers.json")}
    variables.update(EXAMS=str(exam_folder), NEW_TOKENS=str(NEW_TOKENS))
    _succeed([sys.executable, str(STORY), *flags(values)], **variables)
    merged = out / "llava-merged"
    merge = ["merge", "--model-path", lora, "--model-base", tiny_llama, "--save-model-path", merged]
    _succeed([sys.executable, "-m", "llava_ultra_ext.cli", *map(str, merge)])
    tokens = json.loads((out / "answers.json").read_text())
    return Story(tiny_llama, lora, merged, exam_folder, questions, tokens)


def _succeed(command: list[str], **variables: str) -> None:
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def _text(story: Story, tokens: list[int]) -> str:
    from transformers import AutoTokenizer

    return str(
        AutoTokenizer.from_pretrained(story.base, use_fast=False).decode(tokens, skip_special_tokens=True)
    ).strip()


def test_the_answers_are_worth_comparing(story: Story) -> None:
    """Several questions, and answers that are not one token over and over."""
    assert len(story.tokens) >= 5
    assert all(len(set(tokens)) > 3 for tokens in story.tokens)
    assert len({tuple(tokens) for tokens in story.tokens}) > 1


@pytest.mark.parametrize("kind", ["lora", "merged"])
def test_a_reloaded_folder_gives_the_tokens_of_the_training_process(story: Story, kind: str) -> None:
    from llava_ultra_ext.activate import arm

    arm()
    sys.path.insert(0, str(STORY.parent))
    from llava.model.builder import load_pretrained_model
    from train_and_answer import answer

    folder, base = (story.lora, str(story.base)) if kind == "lora" else (story.merged, None)
    tokenizer, model, _, _ = load_pretrained_model(str(folder), base, folder.name, device="cpu")
    assert answer(model, tokenizer, story.questions, story.exams, NEW_TOKENS) == story.tokens


@pytest.mark.parametrize("batch", [1, 4])
def test_generate_gives_the_same_answers_in_batches(story: Story, batch: int, tmp_path: Path) -> None:
    asked, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    asked.write_text("".join(json.dumps(q, ensure_ascii=False) + "\n" for q in story.questions), encoding="utf-8")
    values = {"model-path": story.lora, "model-base": story.base, "image-folder": story.exams, "question-file": asked}
    values.update(
        {"answers-file": answers, "conv-mode": "ultra_v1_zh", "batch-size": batch, "max_new_tokens": NEW_TOKENS}
    )
    _succeed([sys.executable, "-m", "llava_ultra_ext.eval.generate", *flags(values)])
    found = {line["question_id"]: line["text"] for line in map(json.loads, answers.read_text("utf-8").splitlines())}
    assert found == {q["question_id"]: _text(story, t) for q, t in zip(story.questions, story.tokens, strict=True)}


@pytest.fixture(scope="module")
def worker(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LLaVA's own controller and model_worker; the address of the worker."""
    folder = tmp_path_factory.mktemp("serving")
    with socket.socket() as one, socket.socket() as two:
        for found in (one, two):
            found.bind(("127.0.0.1", 0))
        ports = [found.getsockname()[1] for found in (one, two)]
    controller, own = (f"http://127.0.0.1:{port}" for port in ports)
    first = armed_command("llava.serve.controller", "--host", "127.0.0.1", "--port", ports[0])
    second = armed_command(
        *("llava.serve.model_worker", "--host", "127.0.0.1", "--port", ports[1], "--controller-address", controller),
        *("--worker-address", own, "--model-path", story.lora, "--model-base", story.base, "--device", "cpu"),
    )
    # A worker that finds no controller ends; it registers before it listens.
    with (
        _serving(first, folder / "controller.log", lambda: _models(controller) is not None),
        _serving(second, folder / "worker.log", lambda: bool(_models(controller)) and _listens(ports[1])),
    ):
        yield own


@contextlib.contextmanager
def _serving(command: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    with open(log, "w") as file:
        server = subprocess.Popen(command, env=environment(), cwd=log.parent, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + WAIT_S
        while not ready():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.3)
        yield
    finally:
        server.kill()
        server.wait()


def _models(controller: str) -> list[str] | None:
    """The models that are registered; None when nobody answers."""
    try:
        return list(requests.post(f"{controller}/list_models", timeout=5).json()["models"])
    except requests.RequestException:
        return None


def _listens(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


def _ask(worker: str, images: list[Path], prompt: str) -> list[dict[str, Any]]:
    pictures = [base64.b64encode(path.read_bytes()).decode() for path in images]
    request = {"prompt": prompt, "images": pictures, "temperature": 0, "max_new_tokens": NEW_TOKENS, "stop": "</s>"}
    with requests.post(f"{worker}/worker_generate_stream", json=request, stream=True, timeout=60) as response:
        return [json.loads(line) for line in response.iter_lines(delimiter=b"\0") if line]


def _prompt(text: str, images: int) -> str:
    from llava.conversation import Conversation, SeparatorStyle

    from llava_ultra_ext.conversation import templates

    conversation = templates(Conversation, SeparatorStyle)["ultra_v1_zh"].copy()
    conversation.append_message(conversation.roles[0], "<image>\n" * images + text)
    conversation.append_message(conversation.roles[1], None)
    return str(conversation.get_prompt())


def test_the_worker_gives_the_same_answers_and_says_which_frame_it_read(story: Story, worker: str) -> None:
    for question, tokens in zip(story.questions, story.tokens, strict=True):
        prompt = _prompt(question["text"], len(question["image"]))
        messages = _ask(worker, [story.exams / name for name in question["image"]], prompt)
        assert messages[-1]["error_code"] == 0, messages[-1]
        assert messages[-1]["text"][len(prompt) :].strip() == _text(story, tokens)
        [scores], [chosen] = messages[-1]["frame_scores"], messages[-1]["chosen_frames"]
        assert len(scores) == len(question["image"])
        assert chosen == [scores.index(max(scores))]


def test_the_worker_takes_greyscale_stills(story: Story, worker: str, tmp_path: Path) -> None:
    """The usual ultrasound PNG, and not square; LLaVA's own padding refuses it."""
    frame = tmp_path / "grey.png"
    Image.new("L", (48, 32), 90).save(frame)
    [*_, last] = _ask(worker, [frame, frame], _prompt("请描述。", 2))
    assert last["error_code"] == 0, last
    assert len(last["frame_scores"][0]) == 2


def test_the_worker_says_what_is_wrong_with_a_request(story: Story, worker: str) -> None:
    exam = next(question for question in story.questions if len(question["image"]) == 3)
    [*_, last] = _ask(worker, [story.exams / name for name in exam["image"]], _prompt("请描述。", 2))
    assert last["error_code"] == 1
    assert "3 images but 2 <image> in the prompt. Write one <image> for each image" in last["text"]
    assert "NETWORK ERROR" not in last["text"]


def test_the_worker_counts_the_frames_that_are_kept(story: Story, worker: str) -> None:
    """Sixty frames of 16 tokens are no longer than the context of 1024 tokens, since one of them enters the LLM."""
    frame = story.exams / story.questions[0]["image"][0]
    [*_, last] = _ask(worker, [frame] * 60, _prompt("请描述。", 60))
    assert last["error_code"] == 0 and "Exceeds max token length" not in last["text"]
    assert len(last["frame_scores"][0]) == 60
