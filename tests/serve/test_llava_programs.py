"""LLaVA's own programs, unedited, on a machine without CUDA, with a model of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_llava import armed_command, environment, run_llava
from trained import Trained

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def expected(trained_lora: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Our own answers about one frame and about an exam of three."""
    folder = tmp_path_factory.mktemp("expected")
    frames = sorted(str(p.relative_to(trained_lora.exams)) for p in trained_lora.exams.glob("frames/*0003*.png"))
    assert len(frames) == 3
    questions = [
        {"question_id": "frame", "image": frames[0], "text": "请描述该胆囊超声图像。"},
        {"question_id": "exam", "image": frames, "text": "请描述该胆囊超声图像。"},
    ]
    asked, answers = folder / "questions.jsonl", folder / "answers.jsonl"
    asked.write_text("".join(json.dumps(q, ensure_ascii=False) + "\n" for q in questions), encoding="utf-8")
    flags = ["--model-path", trained_lora.lora, "--model-base", trained_lora.base, "--image-folder", trained_lora.exams]
    flags += ["--question-file", asked, "--answers-file", answers, "--max_new_tokens", 12]
    run_llava("llava_ultra_ext.eval.generate", *flags)
    lines = map(json.loads, answers.read_text(encoding="utf-8").splitlines())
    return {line["question_id"]: line["text"] for line in lines} | {"frames": ",".join(frames), "file": str(asked)}


@pytest.mark.parametrize("program", ["model_vqa", "model_vqa_loader"])
def test_the_question_file_programs(
    program: str, trained_lora: Trained, expected: dict[str, str], tmp_path: Path
) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text(Path(expected["file"]).read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    answers = tmp_path / "answers" / "answers.jsonl"
    run_llava(
        f"llava.eval.{program}",
        *("--model-path", trained_lora.lora, "--model-base", trained_lora.base, "--image-folder", trained_lora.exams),
        *("--question-file", one, "--answers-file", answers, "--conv-mode", "ultra_v1_zh", "--temperature", 0),
    )
    [answer] = map(json.loads, answers.read_text(encoding="utf-8").splitlines())
    assert answer["question_id"] == "frame"
    assert expected["frame"] and answer["text"].startswith(expected["frame"])


def test_run_llava_takes_an_exam_as_comma_separated_images(trained_lora: Trained, expected: dict[str, str]) -> None:
    images = ",".join(str(trained_lora.exams / name) for name in expected["frames"].split(","))
    done = run_llava(
        "llava.eval.run_llava",
        *("--model-path", trained_lora.lora, "--model-base", trained_lora.base, "--image-file", images),
        *(
            "--query",
            "请描述该胆囊超声图像。",
            "--conv-mode",
            "ultra_v1_zh",
            "--temperature",
            0,
            "--max_new_tokens",
            12,
        ),
    )
    assert done.stdout.strip().splitlines()[-1] == expected["exam"]


def test_the_command_line_chat(trained_lora: Trained, expected: dict[str, str]) -> None:
    image = trained_lora.exams / expected["frames"].split(",")[0]
    command = armed_command(
        "llava.serve.cli",
        *(
            "--model-path",
            trained_lora.lora,
            "--model-base",
            trained_lora.base,
            "--image-file",
            image,
            "--device",
            "cpu",
        ),
        *("--conv-mode", "ultra_v1_zh", "--temperature", 0, "--max-new-tokens", 12),
    )
    done = subprocess.run(
        command,
        env=environment(),
        input="请描述该胆囊超声图像。\n\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert expected["frame"] in done.stdout


def test_the_prompt_in_the_worker_is_as_long_for_1_4_and_12_frames(trained_lora: Trained, tmp_path: Path) -> None:
    frame = next(iter(trained_lora.exams.glob("frames/*.png")))
    command = [
        sys.executable,
        str(HERE / "count_prompt.py"),
        str(trained_lora.lora),
        str(trained_lora.base),
        str(frame),
    ]
    done = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("LENGTHS")]
    lengths = json.loads(line.removeprefix("LENGTHS "))
    assert set(lengths) == {"1", "4", "12"}
    assert len(set(lengths.values())) == 1 and lengths["1"] > 16
