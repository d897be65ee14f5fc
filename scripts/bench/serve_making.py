"""What the serving benchmarks serve and ask: tiny models whose answers follow from every token, and exams."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

OURS, STOCK = "llava-ultra-bench", "llava-stock-bench"
LIVELY = 10.0
"""What the LLM's random matrices are multiplied with: its answers then follow from every token and picture, and no two
questions have the same; with usual random weights most answers are equal, and a crossed one would go unseen."""
_SPECIAL = 3 + 256
"""The tokenizer's first pieces: unknown, start, end, one a byte. Never said: an answer has its full length."""


@dataclass(frozen=True)
class Exam:
    """A question about pictures.

    Args:
        text: holds a token of its own.
        frames: picture files.
    """

    text: str
    frames: tuple[bytes, ...]

    def addresses(self) -> list[str]:
        """The pictures as data URLs."""
        return [f"data:image/jpeg;base64,{base64.b64encode(frame).decode()}" for frame in self.frames]


def make_models(folder: Path) -> dict[str, Path]:
    """Ours and stock LLaVA, with the same LLM and CLIP, small and random; name -> folder.

    torch is imported here, so that a benchmark that is given its models goes without.
    """
    import torch
    from making import ANSWER, FINDINGS, QUESTION, build, make_encoders

    from tiny_models import make_llama

    torch.set_num_threads(1)
    corpus = [QUESTION, ANSWER, FINDINGS, "检查号 0123456789abcdef A chat between a curious user and an assistant."]
    llm, sources = make_llama(folder / "llama", corpus, max_positions=2048), make_encoders(folder, 256, quick=True)
    made = {}
    for name, ours in ((OURS, True), (STOCK, False)):
        built = build(llm, sources, ours, torch.float32, "cpu")
        with torch.no_grad():
            for layer in built.model.get_model().layers:
                for weight in layer.parameters():
                    weight.mul_(LIVELY if weight.ndim == 2 else 1.0)
            built.model.lm_head.weight[:_SPECIAL] = 0
        built.model.config.use_cache = True
        built.model.save_pretrained(folder / name)
        built.tokenizer.save_pretrained(folder / name)
        made[name] = folder / name
    return made


def draw_exams(count: int, frames: int, seed: int = 0, side: int = 288) -> list[Exam]:
    """Exams of speckle over a pattern of their own; each question holds a token of its own."""
    random = np.random.default_rng(seed)
    exams = []
    for number in range(count):
        pictures = []
        for _ in range(frames):
            coarse = np.kron(random.integers(30, 226, (6, 8)), np.ones((side // 6, side // 6)))
            grey = np.clip(coarse * random.rayleigh(0.8, coarse.shape), 0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(grey).convert("RGB").save(file, "JPEG", quality=85)
            pictures.append(file.getvalue())
        token = hashlib.sha256(f"{seed}-{number}".encode()).hexdigest()[:16]
        exams.append(Exam(f"请给出诊断，检查号{token}", tuple(pictures)))
    return exams
