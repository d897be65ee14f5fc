"""Operations of each part, and the share of the machine's peak that encoders, teacher and language model reached.

The kinds are told apart by differences of steady steps: LoRA without and with the cache differ by the encoders; stage 1
and LoRA by the teacher (and a little in the LLM's step, which is taken off at the LLM's rate).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flops
from llava_ultra_ext.arguments import ATTENTION_LAYERS
from llava_ultra_ext.conversation import SYSTEM
from parts import EXAMS, Rehearsal
from steps import read_json
from watched import Took

STAGE1_PASSES = 2
"""In a run of a few steps the trainer measures the teacher's gap in each: a second pass with other findings."""


def texts(rehearsal: Rehearsal) -> dict[str, int]:
    """Tokens of stage 1's text, stage 2's text, the question, the findings (the longest of each)."""
    from sentencepiece import SentencePieceProcessor

    tokens = SentencePieceProcessor(model_file=str(rehearsal.models / "llama" / "tokenizer.model"))
    stage1, stage2 = (read_json(rehearsal.data / f"{name}.json") for name in ("stage1", "stage2"))
    question = rehearsal.data.joinpath("questions.jsonl").read_text(encoding="utf-8")

    def longest(*found: str) -> int:
        return max(len(tokens.encode(text)) for text in found)

    def said(record: Mapping[str, Any]) -> str:
        return "".join(turn["value"].replace("<image>\n", "") for turn in record["conversations"])

    return {
        "stage1": longest(*(record["conversations"][1]["value"] for record in stage1)),
        "stage2": longest(*(SYSTEM + said(record) for record in stage2)),
        "question": longest(SYSTEM + question.split('"text": ')[1]),
        "findings": longest(*(record["findings"] for record in [*stage1, *stage2])),
    }


def operations(rehearsal: Rehearsal, tokens: Mapping[str, int]) -> dict[str, float]:
    """Part -> floating-point operations."""
    options, shapes, k = rehearsal.options, rehearsal.options.shapes, rehearsal.options.frames
    encode, project = k * flops.encoders_frame(shapes), flops.projector_exam(shapes, k)
    lora = project + flops.llm_step(shapes, tokens["stage2"], options.lora_rank)
    layers = ATTENTION_LAYERS if options.teacher == "attention" else None
    teach = k * flops.teacher_frame(shapes, tokens["findings"], layers)
    stage1 = encode + project + STAGE1_PASSES * teach + flops.llm_step(shapes, tokens["stage1"])
    answer = flops.projector_exam(shapes, k, train=False) + flops.answer(shapes, tokens["question"], options.new_tokens)
    return {
        "stage1": options.steps * stage1,
        "cache": (1 + EXAMS["held-out"]) * encode,
        "scores": flops.projector_exam(shapes, k, train=False) + k * flops.teacher_frame(shapes, tokens["findings"]),
        "lora": options.steps * (encode + lora),
        "lora-cached": options.steps * lora,
        "answer": encode + answer,
        "answer-cached": answer,
    }


def utilisation(
    rehearsal: Rehearsal, took: Mapping[str, Took], work: Mapping[str, float], peak: float
) -> dict[str, Any]:
    """Kind -> share of `peak`; None where the difference of the times is too small to tell."""
    steps = rehearsal.options.steps
    needed = ("stage1", "lora", "lora-cached")
    if any(not took[name].steps_s for name in needed):
        return {}
    second = {name: took[name].steps_s[-1] for name in needed}
    each = {name: work[name] / steps for name in needed}
    llm = each["lora-cached"] / second["lora-cached"]
    encoders = _rate(each["lora"] - each["lora-cached"], second["lora"] - second["lora-cached"])
    shapes, tokens = rehearsal.options.shapes, texts(rehearsal)
    smaller = flops.llm_step(shapes, tokens["stage2"], rehearsal.options.lora_rank)
    smaller -= flops.llm_step(shapes, tokens["stage1"])
    teacher = _rate(each["stage1"] - each["lora"] + smaller, second["stage1"] - second["lora"] + smaller / llm)
    rates = {"encoders": encoders, "teacher": teacher, "language model": llm}
    return {kind: None if rate is None else rate / peak for kind, rate in rates.items()}


def _rate(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def sizes(rehearsal: Rehearsal) -> dict[str, float]:
    """What lies on the disk -> MB."""
    folders = {
        "CLIP": rehearsal.models / "clip",
        "SAM, folder": rehearsal.models / "sam",
        "SAM, .pth": rehearsal.models / "sam.pth",
        "LLaMA": rehearsal.models / "llama",
        "exams": rehearsal.exams,
        "feature cache": rehearsal.features,
        "stage 1 folder": rehearsal.stage1,
        "LoRA folder": rehearsal.lora,
    }
    return {name: size_of(path) / 1e6 for name, path in folders.items()}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
