"""The small models of the quick start, trained on the hospital's instructions by LLaVA itself, and asked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from processes import ROOT, python, step
from run import TINY
from serving import free_ports
from summary import stage_entry

QUICKSTART = ROOT / "playground" / "quickstart"
STAGE1, STAGE2 = "stage 1, projector", "stage 2, whole language model"
EPOCHS = {STAGE1: "8", STAGE2: "16"}
READING_STEPS = "200"
SETTINGS = {**TINY, "NUM_GPUS": "1", "ZERO": "zero2", "LR": "3e-3"}  # one process: these steps are short


class Training:
    """Both stages and the answers of one run.

    Args:
        out: folder of the run.
        images: where the exams' pictures start.
        data: with ``stage1.json`` and ``stage2.json``.
    """

    def __init__(self, out: Path, images: Path, data: Path) -> None:
        self.out, self.logs, self.images, self.data = out, out / "logs", images, data
        self.models, self.stage1, self.stage2 = out / "models", out / "llava-ultra-stage1", out / "llava-ultra-full"

    def make_models(self) -> None:
        """CLIP, SAM and a LLaMA that has read the texts."""
        command = python(QUICKSTART / "make_models.py", "--exams", self.data, "--out", self.models)
        paths = os.pathsep.join([str(QUICKSTART), str(QUICKSTART.parent), os.environ.get("PYTHONPATH", "")])
        title = "tiny CLIP, SAM and LLaMA"
        step(title, [*command, "--steps", READING_STEPS], self.logs / "models.log", {"PYTHONPATH": paths})

    def train(self) -> None:
        """Stage 1 and stage 2 by the scripts that train real models."""
        for title, script in ((STAGE1, "pretrain.sh"), (STAGE2, "finetune.sh")):
            log = self.logs / f"{script.removesuffix('.sh')}.log"
            step(title, ["bash", f"scripts/{script}"], log, self._settings(title))

    def _settings(self, stage: str) -> dict[str, str]:
        return {
            **SETTINGS,
            "EPOCHS": EPOCHS[stage],
            "BASE": str(self.models / "llama"),
            "CLIP_TOWER": str(self.models / "clip"),
            "SAM_TOWER": str(self.models / "sam"),
            "DATA": str(self.data / ("stage1.json" if stage == STAGE1 else "stage2.json")),
            "IMAGES": str(self.images),
            "OUT": str(self.stage1 if stage == STAGE1 else self.stage2),
            "STAGE1": str(self.stage1),
            "DEEPSPEED_ARGS": f"--master_port {free_ports(1)[0]}",
        }

    def losses(self) -> dict[str, tuple[float, float, int]]:
        """Stage -> the language model's loss, mean of the first and of the last third of the steps, and the steps.

        Thirds, not single steps: a step is eight exams of a few kinds, whichever they are.
        """
        found = {}
        for title, folder in ((STAGE1, self.stage1), (STAGE2, self.stage2)):
            loss = stage_entry(title, _read(folder / "trainer_state.json")["log_history"])["loss"]
            third = max(1, len(loss) // 3)
            found[title] = (fmean(loss[:third]), fmean(loss[-third:]), len(loss))
        return found

    def ask(self, questions: Path, answers: Path) -> None:
        """`llava-ultra answer`."""
        command = python("-m", "llava_ultra_ext.cli", "answer", "--model-path", self.stage2, "--device", "cpu")
        command += ["--image-folder", str(self.images), "--question-file", str(questions)]
        command += ["--answers-file", str(answers), "--max_new_tokens", "96", "--batch-size", "4"]
        step("answers", command, self.logs / "answer.log")


def pick_questions(found: Path, picked: Path, count: int) -> list[dict[str, Any]]:
    """Writes `count` questions about exams of several frames, no two worded alike, to a question file of their own."""
    lines = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
    several = [line for line in lines if isinstance(line["image"], list) and len(line["image"]) > 1]
    chosen = list({line["text"]: line for line in several}.values())[:count]
    picked.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in chosen), encoding="utf-8")
    return chosen


def told(questions: list[dict[str, Any]], gold: Path, answers: Path) -> list[str]:
    """Question, frame, answer and report of each question, as lines for a terminal.

    Raises:
        ValueError: a question has no answer, or the answer does not say which frame it is from.
    """
    truths = {line["question_id"]: line for line in _lines(gold)}
    said = {line["question_id"]: line for line in _lines(answers)}
    found: list[str] = []
    for asked in questions:
        answer: Mapping[str, Any] = said.get(asked["question_id"], {})
        frames = (answer.get("metadata") or {}).get("frames")
        if not frames or not frames[0] or not str(answer.get("text", "")).strip():
            raise ValueError(f"question {asked['question_id']} has no answer, or none with a chosen frame")
        chosen, names = frames[0], asked["image"]
        where = ", ".join(f"{place + 1} of {len(names)}" for place in chosen)
        found += ["", f"  question  {asked['text']}", f"  frame     {where}: {names[chosen[0]]}"]
        found += [f"  answer    {answer['text']}", f"  report    {truths[asked['question_id']]['answer']}"]
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
