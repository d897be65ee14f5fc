"""The parts of a rehearsal: commands that users have, on random weights; which are finished, and what each took."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.whole_file import write_whole
from processes import ROOT, python
from run import DEFAULTS  # what scripts/train.sh reads: set to its own default
from serving import free_ports
from shapes import Shapes, shapes_of
from steps import read_json, write_json
from watched import Took, gpu_name, run_watched

HERE = Path(__file__).resolve().parent
EXAMS = {"train": 2, "held-out": 1}

MORE_DEFAULTS = "LR MAX_LENGTH GRADIENT_CHECKPOINTING SAVE_TOTAL_LIMIT LORA_ALPHA LORA_DROPOUT DEEPSPEED_ARGS"
"""What the quick start sets and a rehearsal leaves to the recipe, whatever a user has exported."""


@dataclass(frozen=True)
class Options:
    """What a folder's results belong to."""

    llm: str
    quick: bool
    device: str  # cpu or cuda
    threads: int
    frames: int  # of an exam
    steps: int  # of a training; the last one counts
    encoder_batch: int
    teacher: str  # of stage 1
    zero: str
    sam: str  # folder or pth
    new_tokens: int

    @property
    def shapes(self) -> Shapes:
        return shapes_of(self.llm, self.quick)

    @property
    def lora_rank(self) -> int:
        """finetune_lora.sh's own."""
        return 16 if self.quick else 128

    @property
    def dtype(self) -> str:
        """What train.sh trains in."""
        return "float32" if self.device == "cpu" else "bfloat16"


@dataclass(frozen=True)
class Part:
    """A command, and what it leaves.

    Args:
        name: on the command line and of its files.
        title: in the table.
        command: see `processes.child`.
        env: added to the environment.
        writes: files and folders that are removed before it starts: a cut-off run left them.
        needs: parts whose results it reads; where one ran again, this one does too.
        steps: that its log shows.
        keeps: `--again` without names leaves it alone.
        after: what else is done before it counts as finished.
    """

    name: str
    title: str
    command: Sequence[object]
    env: Mapping[str, str] = field(default_factory=dict)
    writes: Sequence[Path] = ()
    needs: Sequence[str] = ()
    steps: int = 0
    keeps: bool = False
    after: Callable[[], None] = lambda: None


class Rehearsal:
    """Paths and parts of one folder."""

    def __init__(self, out: Path, options: Options) -> None:
        self.out, self.options = out, options
        self.exams, self.data, self.models = out / "exams", out / "data", out / "models"
        self.stage1, self.lora = out / "llava-ultra-stage1", out / "llava-ultra-lora"
        self.features, self.scores = out / "features", out / "frame_scores.jsonl"

    def parts(self) -> list[Part]:
        """In the order in which they run."""
        return [*self._making(), *self._training(), *self._answering()]

    def record(self, part: Part) -> Took | None:
        """What a finished part took."""
        path = self._record_path(part)
        return Took(**read_json(path)) if path.exists() else None

    def run(self, part: Part) -> Took:
        """Runs a part from its beginning and records it.

        Raises:
            StepFailed: its command failed.
        """
        self._record_path(part).unlink(missing_ok=True)
        for path in part.writes:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        log, gpu = self.out / "logs" / f"{part.name}.log", self.options.device != "cpu"
        took = run_watched(part.title, part.command, log, {**self._environment(), **part.env}, part.steps, gpu)
        part.after()
        write_json(self._record_path(part), asdict(took))
        return took

    def _record_path(self, part: Part) -> Path:
        return self.out / "parts" / f"{part.name}.json"

    def _environment(self) -> dict[str, str]:
        here = [str(ROOT), *(str(HERE.parent / name) for name in ("", "quickstart", "ablation", "rehearsal"))]
        common = {
            "OMP_NUM_THREADS": str(self.options.threads),
            "PYTHONPATH": os.pathsep.join(here),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        if self.options.device == "cpu":
            return {**common, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        return {**common, "CUDA_VISIBLE_DEVICES": gpu_name()}

    # --- exams and weights ---

    def _making(self) -> list[Part]:
        size, counts = "64" if self.options.quick else "512", EXAMS
        phantom = _ultra("phantom", "--out", self.exams, "--exams", counts["train"], "--held-out", counts["held-out"])
        phantom += ["--frames", str(self.options.frames), "--size", size, "--workers", "1"]
        exams = Part("exams", "phantom exams", phantom, keeps=True, writes=[self.exams], after=self._write_data)
        made = [exams]
        for kind, title in (
            ("clip", "weights: CLIP"),
            ("sam", "weights: SAM, both formats"),
            ("llama", "weights: LLaMA"),
        ):
            command = python(HERE / "random_weights.py", kind, "--llm", self.options.llm, "--out", self.models / kind)
            command += ["--quick"] if self.options.quick else []
            command += ["--corpus", str(self.exams / "exams.json")] if kind == "llama" else []
            made.append(Part(kind, title, command, keeps=True, writes=[self.models / kind]))
        peak = python(HERE / "peak_rate.py", "--device", self.options.device, "--dtype", self.options.dtype)
        peak += ["--json", str(self.out / "peak.json")]
        return [*made, Part("peak", "matrix products, peak rate", peak)]

    def _write_data(self) -> None:
        """Stage 1 on every training exam, stage 2 and the cache on the first, one question about the held-out one."""
        write_json(self.data / "stage1.json", read_json(self.exams / "stage1.json"))
        write_json(self.data / "stage2.json", read_json(self.exams / "stage2.json")[:1])
        asked = next(
            record
            for record in read_json(self.exams / "exams.json")
            if record["split"] == "test" and record["content_type"] == "diagnosis"
        )
        text = asked["conversations"][0]["value"].replace("<image>\n", "").strip()
        question = {"question_id": asked["id"], "image": asked["image"], "text": text}
        write_whole(self.data / "questions.jsonl", json.dumps(question, ensure_ascii=False) + "\n")

    # --- training ---

    def _training(self) -> list[Part]:
        k = self.options.frames
        build = _ultra("cache", "build", "--feature_cache", self.features, "--image_folder", self.exams)
        build += ["--clip_tower", self.models / "clip", "--sam_tower", self._sam(), "--device", self.options.device]
        build += ["--sam_image_size", self.options.shapes.sam_image_size, "--compute_dtype", self.options.dtype]
        build += ["--encoder_batch_size", self.options.encoder_batch, "--data_path", self.data / "stage2.json"]
        build += ["--data_path", self.data / "questions.jsonl"]
        score = _ultra("score-frames", "--model-path", self.stage1, "--model-base", self.models / "llama")
        score += ["--adr-strategy", "likelihood", "--data-path", self.data / "stage2.json", "--gap-exams", "0"]
        score += ["--image-folder", self.exams, "--feature-cache", self.features, "--output", self.scores]
        score += ["--device", self.options.device]
        weights = ("exams", "clip", "sam", "llama")
        cache = {"FEATURE_CACHE": str(self.features)}
        lora_cached = self.out / "llava-ultra-lora-cached"
        return [
            self._train("stage1", f"stage 1, {k} frames, {self.options.teacher} teacher", self.stage1, {}, weights),
            Part("cache", f"cache build, {2 * k} frames", build, writes=[self.features], needs=weights),
            Part("scores", "score-frames, from cache", score, writes=[self.scores], needs=("stage1", "cache")),
            self._train("lora", f"LoRA, {k} frames", self.lora, {}, ("scores",)),
            self._train("lora-cached", f"LoRA, {k} frames from cache", lora_cached, cache, ("scores",)),
        ]

    def _train(self, name: str, title: str, folder: Path, more: Mapping[str, str], needs: Sequence[str]) -> Part:
        """A training by the project's script, without DeepSpeed's launcher: a single process."""
        stage1, options = name == "stage1", self.options
        own = {"ADR_STRATEGY": options.teacher} if stage1 else {"FRAME_SCORES": str(self.scores)}
        own |= {} if stage1 else {"STAGE1": str(self.stage1), "LORA_R": str(options.lora_rank)}
        wide = str(options.device != "cpu")
        env = {
            **dict.fromkeys((*DEFAULTS.split(), *MORE_DEFAULTS.split()), ""),
            "ZERO": options.zero,
            **{"BF16": wide, "FP16": "False", "TF32": wide},
            **{"BASE": str(self.models / "llama"), "IMAGES": str(self.exams), "OUT": str(folder)},
            **{"CLIP_TOWER": str(self.models / "clip"), "SAM_TOWER": str(self._sam())},
            "DATA": str(self.data / ("stage1.json" if stage1 else "stage2.json")),
            "SAM_IMAGE_SIZE": str(options.shapes.sam_image_size),
            "ENCODER_BATCH": str(options.encoder_batch),
            **{"BATCH": "1", "PER_DEVICE_BATCH": "1", "EPOCHS": "1", "LOADER_WORKERS": "0"},
            **{"SAVE_STEPS": "100000", "LOGGING_STEPS": "1"},
            **{"LAUNCH": sys.executable, "RANKS": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])},
            **own,
            **more,
        }
        script = "pretrain.sh" if stage1 else "finetune_lora.sh"
        command = ["bash", ROOT / "scripts" / script, "--max_steps", options.steps]
        return Part(name, title, command, env, [folder], needs, options.steps)

    def _sam(self) -> Path:
        return self.models / ("sam.pth" if self.options.sam == "pth" else "sam")

    # --- answers ---

    def _answering(self) -> list[Part]:
        found = []
        for name, title, more in (
            ("answer", f"answer, {self.options.frames} frames", []),
            ("answer-cached", f"answer, {self.options.frames} frames from cache", ["--feature-cache", self.features]),
        ):
            file = self.out / f"{name}.jsonl"
            command = _ultra("answer", "--model-path", self.lora, "--model-base", self.models / "llama")
            command += ["--question-file", self.data / "questions.jsonl", "--image-folder", self.exams]
            command += ["--answers-file", file, "--max_new_tokens", self.options.new_tokens]
            command += ["--device", self.options.device, *more]
            record = file.with_name(f"{file.name}.run.json")
            found.append(Part(name, title, command, {}, [file, record], ("lora", "cache"), 1))
        return found


def due(parts: Sequence[Part], finished: Callable[[Part], bool], again: Sequence[str] | None) -> list[Part]:
    """What has to run.

    Args:
        again: names of parts to run once more; empty: all but exams and weights; None: none.

    Raises:
        ValueError: a name is no part's.
    """
    unknown = sorted(set(again or ()) - {part.name for part in parts})
    if unknown:
        known = ", ".join(part.name for part in parts)
        raise ValueError(f"--again {' '.join(unknown)}: no such part. Known: {known}.")
    chosen: dict[str, Part] = {}
    for part in parts:
        asked = again is not None and (part.name in again if again else not part.keeps)
        if asked or not finished(part) or any(need in chosen for need in part.needs):
            chosen[part.name] = part
    return list(chosen.values())


def _ultra(*arguments: object) -> list[Any]:
    return [*python("-m", "llava_ultra_ext.cli"), *arguments]
