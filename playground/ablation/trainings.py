"""One row of one seed: stage 1, the teacher's scores, stage 2, answers, scores; each by the command that users have.

A finished part is kept, so a run that was cut off goes on; what rows share (features, stage 1, teacher scores) is made
once. Encoders are frozen, so all rows of one tower read one feature cache.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import exam_data
import measures
from processes import ROOT, python
from rows import ALL, STAGE1, Row, Scale
from run import DEFAULTS  # what scripts/train.sh reads: set to its own default
from serving import free_ports
from steps import Usage, read_json, run, same_settings, write_json

SETTINGS = {
    **dict.fromkeys(DEFAULTS.split(), ""),
    "NUM_GPUS": "1",
    "ZERO": "zero2",
    "BF16": "False",
    "FP16": "False",
    "TF32": "False",
    "PROJECTOR": "mlp2x_gelu",  # LLaVA 1.5's; a linear one is behind it here in every row
    "EPOCHS": "1",  # --max_steps decides
    "MAX_LENGTH": "1024",
    "GRADIENT_CHECKPOINTING": "False",
    "LOADER_WORKERS": "0",
    "SAVE_STEPS": "100000",
    "LOGGING_STEPS": "5",
    "ENCODER_BATCH": "64",
}
"""Of scripts/train.sh, for models a ten-thousandth of the real size on one processor; else the recipe's numbers."""

STAGE1_LR, STAGE2_LR = "1e-2", "1e-3"
"""Of a projector alone before a frozen language model, and of all weights. The recipes' 1e-3 and 2e-5 are for models
ten thousand times as large."""

MAX_NEW_TOKENS = 80
"""Findings of two lesions have 60."""


@dataclass(frozen=True)
class Setup:
    """Where everything is, and how large it is."""

    out: Path
    scale: Scale

    @property
    def phantom(self) -> Path:
        return self.out / "phantom"

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def models(self) -> Path:
        return self.out / "models"


@dataclass(frozen=True)
class Ran:
    """Files of a row that was trained and has answered, and what both cost."""

    training: Path
    gold: Path
    scores: Path | None
    model: Path
    answers: Path
    trained: Mapping[str, float]
    answered: Usage


class Trainings:
    """Rows of one setup; safe to use from several threads."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._locks: dict[Path, threading.Lock] = {}
        self._guard = threading.Lock()

    def row(self, name: str, seed: int) -> dict[str, Any]:
        """Computes a row, or reads it where it is finished.

        Raises:
            StepFailed: a command failed; its log is named.
            ValueError: the row's folder was computed with other settings.
        """
        row = ALL[name]
        folder = self.setup.out / "rows" / name / f"seed{seed}"
        same_settings(folder / "settings.json", {**self._shared(), "row": asdict(row), "seed": seed})
        result = folder / "result.json"
        if not result.exists():
            write_json(result, {"name": name, "seed": seed, **self._compute(row, folder, seed)})
        return read_json(result)

    def _shared(self) -> dict[str, Any]:
        return {"scale": asdict(self.setup.scale), "recipe": SETTINGS, "stage1": STAGE1, "asked": exam_data.ASKED}

    def _compute(self, row: Row, folder: Path, seed: int) -> dict[str, Any]:
        ran = self._run(row, folder, seed)
        self._score(ran.gold, ran.answers, folder)
        samples = self.setup.scale.stage2_steps * self.setup.scale.batch
        truth, exams = self.setup.phantom / "truth.jsonl", measures.exam_choices(ran.answers, ran.gold)
        return {
            **measures.figures(ran.answers, ran.gold, folder / "scores.json", truth, exams),
            "train_seconds_a_sample": ran.trained["cpu_seconds"] / samples,
            "train_peak_mb": ran.trained["peak_mb"],
            "answer_seconds_a_question": ran.answered.cpu_seconds / len(exam_data.read_lines(ran.gold)),
            "exams": exams,
            "log": _log_end(ran.model),
        }

    def _run(self, row: Row, folder: Path, seed: int) -> Ran:
        """Everything of a row up to its answers."""
        stage1, features = self._stage1(row.stage1, seed), self.features(row.stage1)
        with self._once(self.setup.data):
            training = exam_data.training_file(self.setup.data, row)
            gold = exam_data.gold_file(self.setup.data, row)
        settings = {**self._vision(row.stage1), **row.settings, "ADR_STRATEGY": row.strategy}
        settings |= {"STAGE1": str(stage1), "DATA": str(training), "FEATURE_CACHE": str(features)}
        scores = self._teacher_scores(row, stage1, training, features) if row.cached else None
        if scores is not None:
            settings["FRAME_SCORES"] = str(scores)
        # All weights: LoRA on matrices of 128 is no smaller, and learnt half as fast.
        model, settings["LR"] = folder / "llava-full", STAGE2_LR
        trained = self._train("finetune.sh", model, settings, seed, self.setup.scale.stage2_steps)
        answers, answered = self._answers(model, gold, folder, features)
        return Ran(training, gold, scores, model, answers, trained, answered)

    def _stage1(self, name: str, seed: int) -> Path:
        """Projector of a tower, on frame -> findings; rows of one tower start from the same."""
        folder = self.setup.out / "stage1" / name / f"seed{seed}" / "llava-stage1"
        with self._once(folder):
            settings = {**self._vision(name), "ADR_STRATEGY": "first", "DATA": str(self._pairs())}  # there is one frame
            settings["FEATURE_CACHE"] = str(self.features(name))
            settings |= {"BATCH": str(2 * self.setup.scale.batch), "LR": STAGE1_LR}  # one frame each
            self._train("pretrain.sh", folder, settings, seed, self.setup.scale.stage1_steps)
        return folder

    def _pairs(self) -> Path:
        with self._once(self.setup.data):
            return exam_data.stage1_file(self.setup.data, self.setup.phantom)

    def features(self, stage1: str) -> Path:
        """The feature cache of a tower, for every picture of the run."""
        vision = self._vision(stage1)
        own = {"VISION_TOWER": "sam_clip_fused", "SAM_TOKEN_MERGE": "unshuffle", **vision}
        no_sam = own["VISION_TOWER"] != "sam_clip_fused"
        folder = self.setup.out / "features" / ("no_sam" if no_sam else own["SAM_TOKEN_MERGE"])
        with self._once(folder):
            if not folder.with_suffix(".done").exists():
                command = python("-m", "llava_ultra_ext.cli", "cache", "build", "--feature_cache", folder)
                command += ["--vision_tower", own["VISION_TOWER"], "--image_folder", str(self.setup.phantom)]
                command += ["--encoder_batch_size", SETTINGS["ENCODER_BATCH"], "--dtype", "float32"]
                if not no_sam:
                    command += ["--clip_tower", own["CLIP_TOWER"], "--sam_tower", own["SAM_TOWER"]]
                    command += ["--sam_image_size", own["SAM_IMAGE_SIZE"], "--sam_token_merge", own["SAM_TOKEN_MERGE"]]
                for manifest in (self._pairs(), self.setup.phantom / "exams.json"):
                    command += ["--data_path", str(manifest)]
                run(f"features {folder.name}", command, folder.with_suffix(".log"))
                folder.with_suffix(".done").touch()
        return folder

    def _vision(self, stage1: str) -> dict[str, str]:
        clip, sam = self.setup.models / "clip", self.setup.models / "sam"
        changes = {key: value.format(clip=clip) for key, value in STAGE1[stage1].items()}
        return {"CLIP_TOWER": str(clip), "SAM_TOWER": str(sam), "SAM_IMAGE_SIZE": str(self.setup.scale.size), **changes}

    def _train(self, script: str, folder: Path, settings: Mapping[str, str], seed: int, steps: int) -> dict[str, float]:
        """A training by one of the project's scripts; what it cost."""
        cost = folder.with_name(f"{folder.name}.cost.json")
        if not cost.exists():
            shutil.rmtree(folder, ignore_errors=True)  # a training that was cut off
            env = {
                **SETTINGS,
                "BATCH": str(self.setup.scale.batch),
                **settings,
                "BASE": str(self.setup.models / "llama"),
                "IMAGES": str(self.setup.phantom),
                "OUT": str(folder),
                "SEED": str(seed),
                # DeepSpeed's launcher would start two more Pythons to start this one: a tenth of a row's time.
                **{"LAUNCH": sys.executable, "RANKS": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])},
            }
            command = ["bash", ROOT / "scripts" / script, "--max_steps", steps]
            usage = run(f"{script} {folder.parent}", command, folder.with_name(f"{folder.name}.log"), env)
            write_json(cost, asdict(usage))
        return read_json(cost)

    def _teacher_scores(self, row: Row, stage1: Path, training: Path, features: Path) -> Path:
        layers = row.settings.get("ADR_LAYERS", "")
        target = stage1.with_name(f"{training.parent.name}-{training.stem}-{row.strategy}{layers}.jsonl")
        with self._once(target):
            if not target.with_suffix(".done").exists():
                command = python("-m", "llava_ultra_ext.cli", "score-frames", "--model-path", stage1, "--device", "cpu")
                command += ["--model-base", str(self.setup.models / "llama"), "--adr-strategy", row.strategy]
                command += ["--data-path", str(training), "--image-folder", str(self.setup.phantom)]
                command += ["--feature-cache", str(features), "--output", str(target)]
                command += ["--adr-layers", layers] if layers else []
                run(f"score-frames {target.stem}", command, target.with_suffix(".log"))
                target.with_suffix(".done").touch()
        return target

    def _answers(self, model: Path, gold: Path, folder: Path, features: Path) -> tuple[Path, Usage]:
        answers, cost = folder / "answers.jsonl", folder / "answers.cost.json"
        if not (cost.exists() and answers.exists()):
            command = python("-m", "llava_ultra_ext.cli", "answer", "--model-path", model, "--device", "cpu")
            command += ["--question-file", gold, "--answers-file", answers, "--image-folder", self.setup.phantom]
            command += ["--max_new_tokens", str(MAX_NEW_TOKENS), "--batch-size", "16"]
            command += ["--feature-cache", str(features)]
            write_json(cost, asdict(run(f"answer {folder}", command, folder / "answer.log")))
        return answers, Usage(**read_json(cost))

    def _score(self, gold: Path, answers: Path, folder: Path) -> None:
        command = python("-m", "llava_ultra_ext.cli", "score", "--gold", gold, "--pred", answers, "--allow-missing")
        command += ["--tokenizer", measures.TOKENIZER, "--resamples", "200", "--json", str(folder / "scores.json")]
        run(f"score {folder}", command, folder / "score.log")

    @contextlib.contextmanager
    def _once(self, target: Path) -> Iterator[None]:
        """Rows that need the same thing wait for the one that makes it."""
        with self._guard:
            lock = self._locks.setdefault(target, threading.Lock())
        with lock:
            yield


def _log_end(model: Path) -> dict[str, float]:
    """The last tenth of the trainer's log: loss, alpha, agreement, the teacher's gap to another exam's findings."""
    history = read_json(model / "trainer_state.json")["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    last = steps[-max(1, len(steps) // 10) :]
    names = sorted({name for entry in last for name in entry if name not in ("epoch", "step", "learning_rate")})
    found = {}
    for name in names:
        values = [entry[name] for entry in last if isinstance(entry.get(name), int | float)]
        if values:
            found[name] = sum(values) / len(values)
    return found
