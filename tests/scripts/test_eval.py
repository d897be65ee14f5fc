"""`scripts/eval.sh` from a trained folder to the tables: one command, and again after it was cut off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trained import Trained

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "eval.sh"


def run(**variables: object) -> subprocess.CompletedProcess[str]:
    """The script with these of its variables only."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: os.environ[key] for key in ("HOME", "HF_HUB_OFFLINE", "DS_ACCELERATOR") if key in os.environ}
    environment = {**kept, "PATH": path, **{key: str(value) for key, value in variables.items()}}
    return subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def settings(trained_lora: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The exams that the small model was trained on: it answers some of them."""
    out = tmp_path_factory.mktemp("eval") / "out"
    return {
        "MODELS": trained_lora.lora,
        "BASE": trained_lora.base,
        "SOURCE": "exams",
        "DATA": trained_lora.exams / "train.json",
        "OUT": out,
        "SPLIT": "train",
        "IMPORT_ARGS": "--split 1,0,0",
        "NUM_GPUS": 2,
        "ANSWER_ARGS": "--device cpu --max_new_tokens 40",
        "SCORE_ARGS": "--resamples 50 --allow-missing",  # one English question is answered in Chinese
        "CUDA_VISIBLE_DEVICES": "",
    }


def test_from_a_trained_folder_to_the_tables(settings: dict[str, object], trained_lora: Trained) -> None:
    out = Path(str(settings["OUT"]))
    done = run(**settings)
    assert done.returncode == 0 and done.stdout.endswith("eval: OK\n"), done.stderr[-2000:]
    gold = (out / "data" / "train_gold.jsonl").read_text(encoding="utf-8").splitlines()
    answers = (out / "answers" / "llava-lora.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["question_id"] for line in answers] == [json.loads(line)["question_id"] for line in gold]
    (model,) = json.loads((out / "scores.json").read_text(encoding="utf-8"))["models"]
    assert model["name"] == "llava-lora" and model["n"] == len(gold) and model["metrics"]["strict"]["char"]["f1"] > 30
    assert sorted(path.name for path in (out / "report").iterdir()) == [
        "chart.png",
        "examples.html",
        "scores.json",
        "table.md",
        "table.tex",
    ]
    _goes_on(settings, out, trained_lora)


def _goes_on(settings: dict[str, object], out: Path, trained: Trained) -> None:
    """With an answer lost as by a kill, the rest is kept; and an answers file that is there already joins the table."""
    part = out / "answers" / "llava-lora" / "2_0.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    other = out.parent / "other.jsonl"
    whole = (out / "answers" / "llava-lora.jsonl").read_text(encoding="utf-8")
    other.write_text(whole.replace('"llava-lora"', '"llava-7b"'), encoding="utf-8")
    done = run(**settings, PREDS=other)
    assert done.returncode == 0, done.stderr[-2000:]
    after = part.read_bytes().splitlines(keepends=True)
    assert after[: len(lines) - 1] == lines[:-1] and len(after) == len(lines)
    models = json.loads((out / "scores.json").read_text(encoding="utf-8"))["models"]
    assert [model["name"] for model in models] == ["llava-lora", "llava-7b"]
    assert models[0]["metrics"] == models[1]["metrics"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"SPLIT": "test"}, "SPLIT=test: exams has none; there are: train_gold.jsonl"),
        ({"SOURCE": ""}, "set SOURCE to slake, openi, busi or exams"),
        ({"DATA": "nowhere.json"}, "nowhere.json"),
        ({"MODELS": "nowhere"}, "nowhere did not answer every question"),
    ],
)
def test_what_is_missing_is_said(changed: dict[str, str], message: str, settings: dict[str, object]) -> None:
    done = run(**{**settings, "OUT": f"{settings['OUT']}-{next(iter(changed))}", **changed})
    assert done.returncode != 0 and message in done.stderr and "eval: OK" not in done.stdout
