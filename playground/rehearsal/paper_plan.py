"""What training takes on the paper's machines, beside its 60 hours, and at other sizes: operations over a stated rate.

The paper (sections 3.3, 4.1, 5.1): 4 A40 of 48 GB, LLaMA-13B, 20k texts, 170k frames, 60 hours. It does not say how
many epochs, nor how long the texts are; every assumption is a field of `Assumptions` and a flag of the rehearsal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import flops
from llava_ultra_ext.arguments import ATTENTION_LAYERS
from shapes import CLIP_L, LLAMAS, SAM_L, Shapes

PAPER_HOURS = 60.0
BYTES = {"float16": 2, "int8": 1}
UTILISATION = {"encoders": 0.40, "teacher": 0.40, "language model": 0.35}
"""Shares of the GPU's peak, where nothing was measured. Our choice: usual for ViTs and for LLMs with checkpointing."""


@dataclass(frozen=True)
class Assumptions:
    """Everything that the hours depend on.

    Args:
        gpus: of the machine.
        gpu_tflops: peak of one in bfloat16, without sparsity; an A40's data sheet says 149.7.
        utilisation: share of that peak which each part reaches.
        exams: texts; each has one exam's frames.
        frames: pictures.
        llm: its size.
        samples: questions an exam in stage 2, one sample each.
        stage1_epochs, stage2_epochs: as pretrain.sh and finetune.sh have them.
        text: tokens of system text, question and answer.
        findings: tokens that the teacher reads.
        lora_rank: finetune_lora.sh's.
        picture_kb: size of a picture file.
        deadline: hours within which the scaling note wants to end.
    """

    gpus: int = 4
    gpu_tflops: float = 149.7
    utilisation: dict[str, float] = field(default_factory=lambda: dict(UTILISATION))
    exams: int = 20_000
    frames: int = 170_000
    llm: str = "13b"
    samples: int = 1
    stage1_epochs: int = 1
    stage2_epochs: int = 3
    text: int = 300
    findings: int = 200
    lora_rank: int = 128
    picture_kb: float = 100.0
    deadline: float = PAPER_HOURS

    @property
    def shapes(self) -> Shapes:
        return Shapes(CLIP_L, SAM_L, LLAMAS[self.llm], 768)

    @property
    def frames_an_exam(self) -> float:
        return self.frames / self.exams

    def hours(self, operations: float, part: str) -> float:
        """Of all GPUs together on one kind of part."""
        return operations / (self.gpus * self.gpu_tflops * 1e12 * self.utilisation[part]) / 3600


WAYS = {
    "recipe": "our recipe: likelihood teacher online in stage 1, once for all (score-frames) before stage 2",
    "cached": "the same from a feature cache",
    "attention": f"the paper's attention teacher (N = {ATTENTION_LAYERS}) online in both stages, no cache",
    "attention cached": "the same from a feature cache",
}


def operations(given: Assumptions, way: str) -> dict[str, tuple[str, float]]:
    """Part of a training -> (kind, floating-point operations), for one of `WAYS`."""
    shapes, cached, attention = given.shapes, way.endswith("cached"), way.startswith("attention")
    encode = given.frames * flops.encoders_frame(shapes)
    layers = ATTENTION_LAYERS if attention else None
    teach = given.frames * flops.teacher_frame(shapes, given.findings, layers)
    passes = {"stage 1": given.stage1_epochs, "stage 2": given.stage2_epochs * given.samples}
    found: dict[str, tuple[str, float]] = {}
    if cached:
        found["feature cache, once"] = "encoders", encode
    elif not attention:
        found["score-frames: encoders"] = "encoders", encode
    if not attention:
        found["score-frames: teacher"] = "teacher", teach
    for stage, times in passes.items():
        if not cached:
            found[f"{stage}: encoders"] = "encoders", times * encode
        if attention or stage == "stage 1":
            found[f"{stage}: teacher"] = "teacher", times * teach
        rank = 0 if stage == "stage 1" else given.lora_rank
        step = given.exams * flops.llm_step(shapes, given.text, rank)
        step += given.exams * flops.projector_exam(shapes, 1) * given.frames_an_exam
        found[f"{stage}: language model"] = "language model", times * step
    return found


def hours(given: Assumptions, way: str) -> dict[str, float]:
    """Part of a training -> hours on all GPUs, and their `total`."""
    found = {part: given.hours(count, kind) for part, (kind, count) in operations(given, way).items()}
    return {**found, "total": sum(found.values())}


def scaled(given: Assumptions, frames: int) -> dict[str, Any]:
    """A training of so many frames, as many an exam as given: hours, GPUs for the deadline, terabytes."""
    factor = frames / given.frames
    cost: dict[str, Any] = {"frames": frames, "exams": round(given.exams * factor)}
    for way in WAYS:
        all_hours = hours(given, way)["total"] * factor
        cost[f"{way}: hours"] = all_hours
        cost[f"{way}: GPUs for {given.deadline:g} h"] = -(-all_hours * given.gpus // given.deadline)
    for dtype, size in BYTES.items():
        cost[f"cache {dtype}, TB"] = frames * given.shapes.frame_numbers * size / 1e12
    cost["pictures, TB"] = frames * given.picture_kb * 1e3 / 1e12
    return cost


def measured_utilisation(results: list[dict[str, Any]]) -> dict[str, float]:
    """Shares of peak that files of measurements hold: of this rehearsal, or of `scripts/bench/sam_encoder.py`.

    Raises:
        ValueError: a file holds neither.
    """
    found: dict[str, float] = {}
    for result in results:
        if isinstance(result.get("utilisation"), dict):
            found |= {kind: share for kind, share in result["utilisation"].items() if share and kind in UTILISATION}
        elif {"matmul_limit_s", "ours_s"} <= result.keys():
            found["encoders"] = result["matmul_limit_s"] / result["ours_s"]
        else:
            raise ValueError(
                "--measured: holds neither `utilisation` (a rehearsal's --json) nor `matmul_limit_s` and `ours_s` "
                "(scripts/bench/sam_encoder.py --json)."
            )
    return found
