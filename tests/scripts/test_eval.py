"""`scripts/eval.sh` from a trained folder to the tables: one command, and again after it was cut off."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from interrupts import hear_ctrl_c
from trained import Trained

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "eval.sh"


def run(programs: Path | None = None, **variables: object) -> subprocess.CompletedProcess[str]:
    """The script with these of its variables only; `programs`: a folder that is searched first."""
    path = os.pathsep.join([str(programs or ""), str(Path(sys.executable).parent), os.environ["PATH"]]).lstrip(":")
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
    (folder,) = (out / "answers").iterdir()
    assert re.fullmatch(r"llava-lora-[0-9a-f]{8}", folder.name)
    answers = (folder / "llava-lora.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["question_id"] for line in answers] == [json.loads(line)["question_id"] for line in gold]
    (model,) = json.loads((out / "scores.json").read_text(encoding="utf-8"))["models"]
    assert model["name"] == "llava-lora" and model["n"] == len(gold) and model["metrics"]["strict"]["char"]["f1"] > 30
    assert sorted(path.name for path in (out / "report").iterdir()) == [
        "chart.png",
        "examples.html",
        "report.json",
        "table.md",
        "table.tex",
    ]
    _goes_on(settings, out, trained_lora)


def _goes_on(settings: dict[str, object], out: Path, trained: Trained) -> None:
    """With an answer lost as by a kill, the rest is kept; and an answers file that is there already joins the table."""
    (folder,) = (out / "answers").iterdir()
    part = folder / "2_0.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    other = out.parent / "other.jsonl"
    whole = (folder / "llava-lora.jsonl").read_text(encoding="utf-8")
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


STAND_IN = """#!/usr/bin/env bash
printf '%q ' "$@" >>"$CALLS"; echo >>"$CALLS"
if [[ $1 == import ]]; then
    while [[ $1 != --out ]]; do shift; done
    mkdir -p "$2"
    for split in test validate; do
        for kind in questions gold; do echo "$QUESTIONS $split" >"$2/${split}_$kind.jsonl"; done
    done
elif [[ $1 == answer && -n ${HANGS:-} ]]; then
    echo $$ >>"$HANGS"
    exec sleep 100
elif [[ $1 == answer ]]; then
    while [[ $1 != --answers-file ]]; do shift; done
    mkdir -p "$(dirname "$2")"
    echo one >>"$2"
fi
"""
"""In place of `llava-ultra`: writes down how it is called, and a line into each answers file."""


class Calls:
    """Runs of the script with `STAND_IN`, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "bin" / "llava-ultra").write_text(STAND_IN, encoding="utf-8")
        (folder / "bin" / "llava-ultra").chmod(0o755)
        (folder / "data").mkdir()

    def model(self, name: str, *files: str) -> Path:
        """A model folder with files of one byte."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        for file in ("config.json", *files):
            (folder / file).write_text("0")
        return folder

    def __call__(self, *models: Path, **variables: object) -> list[list[str]]:
        """The words of each call, in order."""
        log = self.folder / "calls"
        log.unlink(missing_ok=True)
        settings = {"SOURCE": "slake", "DATA": self.folder / "data", "OUT": self.folder / "out", "NUM_GPUS": 1}
        settings |= {"CALLS": log, "QUESTIONS": "first", "MODELS": " ".join(map(str, models)), **variables}
        done = run(self.folder / "bin", **settings)
        assert done.returncode == 0, done.stderr
        return [shlex.split(line) for line in log.read_text(encoding="utf-8").splitlines()]

    def answered(self, *models: Path, **variables: object) -> list[Path]:
        """The answers files that are scored."""
        (score,) = (call for call in self(*models, **variables) if call[0] == "score")
        return list(map(Path, flags(score, "--pred")))


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


def flags(call: list[str], name: str) -> list[str]:
    return [call[place + 1] for place, word in enumerate(call) if word == name]


def test_a_base_goes_only_to_folders_without_whole_weights(calls: Calls) -> None:
    parts = [
        calls.model("lora", "adapter_config.json", "non_lora_trainables.bin"),
        calls.model("stage1", "mm_projector.bin"),
    ]
    whole = [
        calls.model("merged", "model-00001-of-00002.safetensors"),
        calls.model("full", "mm_projector.bin", "model.safetensors"),
        calls.model("old", "mm_projector.bin", "pytorch_model-00001-of-00002.bin"),
    ]
    answers = [call for call in calls(*parts, *whole, BASE="vicuna") if call[0] == "answer"]
    found = {Path(flags(call, "--model-path")[0]).name: flags(call, "--model-base") for call in answers}
    assert found == {"lora": ["vicuna"], "stage1": ["vicuna"], "merged": [], "full": [], "old": []}


def test_what_the_training_exports_does_not_reach_the_evaluation(calls: Calls) -> None:
    model = calls.model("merged", "model.safetensors")
    (calls.folder / "data" / "imgs").mkdir()
    for call in calls(model, BASE="vicuna", IMAGES="data/images"):
        assert flags(call, "--image-folder") == ([str(calls.folder / "data" / "imgs")] if call[0] != "score" else [])
        assert "vicuna" not in call
    assert flags(calls(model, EVAL_IMAGES="elsewhere")[1], "--image-folder") == ["elsewhere"]


def test_answers_are_of_one_model_one_base_one_decoding_and_one_question_file(calls: Calls) -> None:
    lora, settings = calls.model("lora", "adapter_config.json"), {"BASE": "vicuna", "ANSWER_ARGS": "--num_beams 1"}
    (first,) = calls.answered(lora, **settings)
    assert re.fullmatch(r"lora-[0-9a-f]{8}", first.parent.name) and first.name == "lora.jsonl"
    assert calls.answered(lora, **settings) == [first] and first.read_text() == "one\none\n"  # continued
    changes: list[dict[str, object]] = [
        {"BASE": "llama"},
        {"ANSWER_ARGS": "--num_beams 2"},
        {"QUESTIONS": "second"},
        {"SPLIT": "validate"},
        {"EVAL_IMAGES": "elsewhere"},
    ]
    others = [calls.answered(lora, **{**settings, **change})[0] for change in changes]
    (lora / "adapter_model.safetensors").write_text("00")
    others.append(calls.answered(lora, **settings)[0])
    os.utime(lora / "adapter_model.safetensors", (1, 1))  # trained again to a file of the same size
    others.append(calls.answered(lora, **settings)[0])
    assert len({first, *others}) == 8 and all(path.read_text() == "one\n" for path in others)
    assert first.read_text() == "one\none\n"  # what was answered before stays
    # A base that a model does not need changes nothing.
    whole = calls.model("whole", "model.safetensors")
    assert calls.answered(whole, BASE="a") == calls.answered(whole, BASE="b")


def test_folders_of_one_name_get_their_parents(calls: Calls) -> None:
    models = [calls.model(f"{run}/checkpoint-100", "model.safetensors") for run in ("ultra", "llava")]
    other = calls.model("other", "model.safetensors")
    done = calls(*models, other, PREDS="theirs.jsonl")
    for call in (call for call in done if call[0] in ("score", "report")):
        preds = [Path(path) for path in flags(call, "--pred")]
        names = ["ultra-checkpoint-100", "llava-checkpoint-100", "other", "theirs"]
        assert [path.stem for path in preds] == names
        assert flags(call, "--name") == [*names[:2], "", ""]  # the others say their own


def test_one_folder_twice_is_refused_before_anything_runs(calls: Calls) -> None:
    model = calls.model("ultra", "model.safetensors")
    twins = [calls.model(f"{place}/run/checkpoint-1", "model.safetensors") for place in "ab"]
    for models, said in (
        ([model, f"{model}/"], "ultra are one folder"),
        (twins, "would both be called run-checkpoint-1"),
    ):
        log = calls.folder / "calls"
        settings = {"SOURCE": "slake", "DATA": calls.folder, "OUT": calls.folder / "out", "CALLS": log}
        done = run(calls.folder / "bin", **settings, MODELS=" ".join(map(str, models)))
        assert done.returncode == 1 and said in done.stderr and not log.exists()


def test_the_scored_language_is_the_one_that_is_asked(calls: Calls) -> None:
    model = calls.model("ultra", "model.safetensors")
    done = calls(model, SCORED_LANG="zh", IMPORT_ARGS="--seed 3")
    assert {call[0]: flags(call, "--lang") for call in done} == {
        "import": ["zh"], "answer": [], "score": ["zh"], "report": ["zh"],
    }  # fmt: skip
    assert all(flags(call, "--lang") == [] for call in calls(model))


@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False)]
)
def test_a_signal_ends_the_processes_that_answer(calls: Calls, number: int, whole_group: bool) -> None:
    model, started = calls.model("ultra", "model.safetensors"), calls.folder / "started"
    variables = {"SOURCE": "slake", "DATA": calls.folder / "data", "OUT": calls.folder / "out", "NUM_GPUS": 2}
    variables |= {"CALLS": calls.folder / "calls", "QUESTIONS": "first", "MODELS": model, "HANGS": started}
    environment = {"PATH": f"{calls.folder / 'bin'}:{os.environ['PATH']}", **{k: str(v) for k, v in variables.items()}}
    script = subprocess.Popen(
        ["bash", str(SCRIPT)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    deadline = time.monotonic() + 30
    while not started.exists() or started.read_text().count("\n") < 2:
        assert time.monotonic() < deadline and script.poll() is None
        time.sleep(0.02)
    (os.killpg if whole_group else os.kill)(script.pid, number)
    _, said = script.communicate(timeout=30)
    assert script.returncode == 128 + number and "eval: interrupted; answers so far are kept" in said
    for process in map(int, started.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize("given", ["0", "abc", "-1", "2x"])
def test_the_number_of_processes_is_checked_first(given: str, calls: Calls) -> None:
    log = calls.folder / "calls"
    done = run(calls.folder / "bin", SOURCE="slake", DATA=calls.folder, MODELS="x", CALLS=log, NUM_GPUS=given)
    assert done.returncode == 1 and f"NUM_GPUS={given}: must be a whole number, 1 or more" in done.stderr
    assert not log.exists()


@pytest.fixture
def benchmark() -> ModuleType:
    """`scripts/bench/score.py`."""
    spec = importlib.util.spec_from_file_location("bench_score", SCRIPT.parent / "bench" / "score.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_benchmark_that_fails_says_why(benchmark: ModuleType, tmp_path: Path) -> None:
    program = "import sys; print('first', file=sys.stderr); sys.exit('the last line')"
    with pytest.raises(RuntimeError, match=r"failed with status 1 in .*: the last line$"):
        benchmark.timed([sys.executable, "-c", program], tmp_path)
    with pytest.raises(RuntimeError, match=r"failed with status -9 in .*: it said nothing$"):
        benchmark.timed([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path)
    seconds, cpu_seconds, peak_mb = benchmark.timed([sys.executable, "-c", "sum(range(10**6))"], tmp_path)
    assert cpu_seconds > 0 and seconds > 0 and peak_mb > 1
