"""The quick start after the installation: exams, models, two training stages, LLaVA's servers, questions, a page.

    bash scripts/quickstart.sh      (it makes the environment and switches LLaVA-Ultra on, then calls this)

Everything goes to one folder, which is emptied first; every step's output is in its `logs/`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from processes import ROOT, StepFailed, python, step, stop_on_signals
from report import write_report
from serving import ask, free_ports, serve
from summary import blind_answers, exam_entry, most_frequent_answers, problems, stage_entry, table

HERE = Path(__file__).resolve().parent
OUT = ROOT / "playground" / "out" / "quickstart"
MARK = ".quickstart"  # says that a folder is ours to empty
STAGE1, STAGE2 = "stage 1, projector", "stage 2, LoRA"

# What scripts/train.sh reads. Empty: that script's default, whatever a user has exported for trainings of their own.
DEFAULTS = (
    "HOSTFILE LAUNCH RANKS DRY_RUN VERSION VISION_TOWER SAM_TOKEN_MERGE SAM_SELECT_FEATURE SAM_TRAINABLE PROJECTOR "
    "PROJECTOR_LR FUSION_ALPHA ADR_STRATEGY ADR_LAYERS ADR_WEIGHTS ADR_TOP_K ADR_TEMPERATURE ADR_LOSS_WEIGHT "
    "ADR_WARMUP ADR_SELECT_BY ADR_QUESTION_RANK ADR_TEACHER_TEXT ADR_COVERAGE FRAME_SCORES FEATURE_CACHE MAX_FRAMES "
    "PER_DEVICE_BATCH SCHEDULE WARMUP_RATIO WEIGHT_DECAY SEED ON_BAD_SAMPLE REPORT_TO"
)
# For models a ten-thousandth of the real size, from random weights; the scripts hold the paper's numbers.
TINY = {
    **dict.fromkeys(DEFAULTS.split(), ""),
    "NUM_GPUS": "2",  # ranks; DS_ACCELERATOR=cpu makes them processes of the CPU
    "ZERO": "zero3",
    "BF16": "False",
    "FP16": "False",
    "TF32": "False",
    "SAM_IMAGE_SIZE": "192",  # make_models.py's SAM
    "BATCH": "8",
    "LR": "3e-3",
    "MAX_LENGTH": "512",
    "GRADIENT_CHECKPOINTING": "False",
    "LOADER_WORKERS": "0",
    "SAVE_STEPS": "100000",  # no checkpoints on the way
    "LOGGING_STEPS": "1",
    "ENCODER_BATCH": "32",
}
EPOCHS = {1: "8", 2: "16"}
LORA = {"LORA_R": "16", "LORA_ALPHA": "32", "LORA_DROPOUT": "0"}


class QuickStart:
    """Paths and steps of one run.

    Args:
        out: Absolute folder that holds everything.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.logs, self.exams, self.models = out, out / "logs", out / "exams", out / "models"
        self.stage1, self.stage2 = out / "llava-ultra-stage1", out / "llava-ultra-lora"
        self.scores = out / "frame_scores.jsonl"

    def prepare(self) -> None:
        """Empties the folder.

        Raises:
            StepFailed: It holds files of somebody else.
        """
        if self.out.exists() and any(self.out.iterdir()) and not (self.out / MARK).exists():
            raise StepFailed(f"--out {self.out}: is not empty and not of an earlier quick start; choose another folder")
        shutil.rmtree(self.out, ignore_errors=True)
        self.logs.mkdir(parents=True)
        (self.out / MARK).touch()

    def build(self) -> None:
        """Exams from the real files, and the models."""
        exams = python(HERE / "build_exams.py", "--out", self.exams)
        models = python(HERE / "make_models.py", "--exams", self.exams, "--out", self.models)
        here = {"PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent)))}
        step("exams from real ultrasound files", exams, self.logs / "exams.log")
        step("tiny CLIP, SAM and LLaMA", models, self.logs / "models.log", here)
        print(f"{'':34}{self.reading()}")

    def train(self) -> None:
        """Stage 1, the teacher's scores, stage 2: each by the script that trains real models."""
        step(STAGE1, ["bash", "scripts/pretrain.sh"], self.logs / "stage1.log", self._settings(1))
        score = python("-m", "llava_ultra_ext.cli", "score-frames", "--model-path", self.stage1, "--device", "cpu")
        score += ["--model-base", str(self.models / "llama"), "--adr-strategy", "likelihood"]
        score += ["--data-path", str(self.exams / "stage2.json"), "--image-folder", str(self.exams)]
        score += ["--output", str(self.scores)]
        step("likelihood teacher's frame scores", score, self.logs / "frame_scores.log")
        lora = {**self._settings(2), **LORA, "STAGE1": str(self.stage1), "FRAME_SCORES": str(self.scores)}
        step(STAGE2, ["bash", "scripts/finetune_lora.sh"], self.logs / "stage2.log", lora)

    def _settings(self, stage: int) -> dict[str, str]:
        return {
            **TINY,
            "EPOCHS": EPOCHS[stage],
            "BASE": str(self.models / "llama"),
            "CLIP_TOWER": str(self.models / "clip"),
            "SAM_TOWER": str(self.models / "sam"),
            "DATA": str(self.exams / f"stage{stage}.json"),
            "IMAGES": str(self.exams),
            "OUT": str(self.stage1 if stage == 1 else self.stage2),
            "DEEPSPEED_ARGS": f"--master_port {free_ports(1)[0]}",
        }

    def answer(self) -> list[dict[str, Any]]:
        """Every question of questions.jsonl, asked of LLaVA's servers; the truth joins afterwards."""
        start = time.monotonic()
        print(f"{'controller and model_worker':34}", end="", flush=True)
        questions = _read_lines(self.exams / "questions.jsonl")
        with serve(self.stage2, self.models / "llama", self.logs) as controller:
            print(f"{time.monotonic() - start:4.0f} s  ({controller})", flush=True)
            start = time.monotonic()
            images = [[self.exams / name for name in asked["image"]] for asked in questions]
            messages = [ask(controller, own, asked["text"]) for own, asked in zip(images, questions, strict=True)]
        print(f"{f'{len(questions)} questions over HTTP':34}{time.monotonic() - start:4.0f} s", flush=True)
        gold = {line["question_id"]: line for line in _read_lines(self.exams / "gold.jsonl")}
        cines = self._cine_exams()
        return [
            exam_entry(gold[asked["question_id"]], message, asked["exam_id"] in cines)
            for asked, message in zip(questions, messages, strict=True)
        ]

    def _cine_exams(self) -> set[str]:
        built = json.loads((self.exams / "sources.json").read_text(encoding="utf-8"))
        frames = {source["file"]: source["frames"] for source in built["used"]}
        return {exam["exam_id"] for exam in built["exams"] if frames[exam["source"]] > 1}

    def stages(self) -> list[dict[str, Any]]:
        """Both stages as the trainers logged them."""
        folders = {STAGE1: self.stage1, STAGE2: self.stage2}
        states = {name: folder / "trainer_state.json" for name, folder in folders.items()}
        return [
            stage_entry(name, json.loads(path.read_text(encoding="utf-8"))["log_history"])
            for name, path in states.items()
        ]

    def result(self, exams: list[dict[str, Any]]) -> dict[str, Any]:
        """What report.py and the table show."""
        samples = json.loads((self.exams / "stage2.json").read_text(encoding="utf-8"))
        return {
            "stages": self.stages(),
            "exams": exams,
            "blind": blind_answers(exams, most_frequent_answers(samples)),
            "environment": {**environment(), "language model": self.reading()},
        }

    def reading(self) -> str:
        """How the LLaMA was prepared, in make_models.py's words."""
        return (self.logs / "models.log").read_text(encoding="utf-8").splitlines()[-1]

    def report(self, result: dict[str, Any]) -> Path:
        """Writes result.json and the page."""
        path = self.out / "result.json"
        path.write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
        return write_report(path, self.out / "report.html", self.exams)


def environment() -> dict[str, str]:
    """Versions for the page."""
    names = ("llava-torch", "torch", "transformers", "deepspeed", "peft", "pydicom")
    return {
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
        "machine": f"{os.cpu_count()} processors, {platform.system()}, no GPU used",
        "training": "deepspeed, 2 ranks, ZeRO-3, llava/train/train_mem.py unedited",
        "serving": "llava.serve.controller and llava.serve.model_worker unedited",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0 when everything went well."""
    parser = argparse.ArgumentParser(prog="bash scripts/quickstart.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder to empty and to write (default: %(default)s)")
    run = QuickStart(parser.parse_args(argv).out.resolve())
    start = time.monotonic()
    try:
        run.prepare()
        run.build()
        run.train()
        exams = run.answer()
        result = run.result(exams)
        page = run.report(result)
        print(f"\n{table(result)}\n\nreport: {page}\n{time.monotonic() - start:.0f} s after the installation")
        found = problems(result)
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            raise StepFailed(f"{found[0]}{more}; logs: {run.logs}")
    except (StepFailed, OSError, ValueError, KeyError) as error:
        print(f"quickstart: FAILED: {error or type(error).__name__}", file=sys.stderr)
        return 1
    print("quickstart: OK")
    return 0


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    stop_on_signals("quickstart")
    raise SystemExit(main())
