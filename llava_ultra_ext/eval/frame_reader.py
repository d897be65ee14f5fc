"""The teacher by itself, one exam after the other, with the scores that training computes online (eq. 4, and ours)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llava_ultra_ext.arguments import ATTENTION_LAYERS, TAUGHT, UltraSettings
from llava_ultra_ext.data.cached_frames import read_frames
from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.eval.frames import open_frames
from llava_ultra_ext.model.groups import Group
from llava_ultra_ext.model.opening import OpenedModel
from llava_ultra_ext.vision.distillation import teacher_gap
from llava_ultra_ext.vision.feature_cache import FeatureCache


@dataclass(frozen=True)
class Teacher:
    """Which score, and how much of the LLM reads it.

    Args:
        strategy: ``likelihood`` or ``attention``.
        layers: first N layers of the LLM; None: all.
    """

    strategy: str
    layers: int | None

    @property
    def title(self) -> str:
        """What the header of a scores file says; other layers are other scores."""
        return self.strategy if self.layers is None else f"{self.strategy}/{self.layers}"

    @classmethod
    def choose(cls, strategy: str | None, layers: int | None, settings: UltraSettings) -> Teacher:
        """From the flags, by default what the model was trained with."""
        own = settings.adr_strategy if settings.adr_strategy in TAUGHT else "likelihood"
        chosen = strategy or own
        if layers is None and chosen == settings.adr_strategy:
            layers = settings.adr_layers
        if layers is None and chosen == "attention":
            layers = ATTENTION_LAYERS
        return cls(chosen, layers)


class FrameReader:
    """Scores exams one by one, so that an exam's scores do not depend on its neighbours.

    Args:
        opened: a model of ours.
        teacher: which score.
        image_folder: where picture names start.
        findings_max_length: findings tokens that are read, as in training.
        batch_size: frames at once; None: what the model's settings say.
        feature_cache: ``--feature-cache``, of the model's encoders: records of frames are read from it.
    """

    def __init__(
        self,
        opened: OpenedModel,
        teacher: Teacher,
        image_folder: str,
        findings_max_length: int,
        batch_size: int | None,
        feature_cache: FeatureCache | None = None,
    ) -> None:
        self._model, self._tokenizer = opened.model, opened.tokenizer
        self._processor = opened.image_processor
        self._folder, self._findings_max_length = image_folder, findings_max_length
        settings = opened.model.settings
        size = batch_size or settings.encoder_batch_size
        settings.replace(adr_strategy=teacher.strategy, adr_layers=teacher.layers, encoder_batch_size=size).to_config(
            opened.model.config
        )
        opened.model.get_vision_tower().encoder_batch_size = size
        self._cache = feature_cache
        if feature_cache is not None:
            opened.model.get_vision_tower().unload()

    @torch.inference_mode()
    def features(self, exam: Exam) -> torch.Tensor:
        """H_v of an exam's frames, (k, T, D).

        Raises:
            ValueError: a picture cannot be decoded.
        """
        if self._cache is not None:
            pixels = read_frames(self._cache, f"sample {exam.id}", exam.images, self._folder)
        else:
            pictures = open_frames(f"sample {exam.id}", exam.images, self._folder)
            pixels = self._processor.preprocess(pictures, return_tensors="pt")["pixel_values"]
        h: torch.Tensor = self._model.encode_images(pixels.to(self._model.device))
        return h

    @torch.inference_mode()
    def scores(self, exam: Exam, h: torch.Tensor, findings: str) -> torch.Tensor:
        """(k,) float32 on the CPU; NaN for a frame that has no rival in its redundancy group."""
        ids = self._tokenizer(findings, add_special_tokens=False).input_ids[: self._findings_max_length]
        text = torch.tensor([ids], dtype=torch.long, device=self._model.device)
        groups = [Group(0, (), len(group)) for group in exam.groups]
        found: torch.Tensor = self._model.score_frames(h, groups, text, torch.ones_like(text).bool())
        return found.float().cpu()

    def gap(self, exams: Sequence[Exam], count: int, seed: int = 0) -> float:
        """`teacher_gap` between own findings and another exam's, over a random sample; NaN where no text differs."""
        sample = random.Random(seed).sample(list(exams), min(count, len(exams)))
        gaps = []
        for position, exam in enumerate(sample):
            others = [other.findings for other in sample[position + 1 :] + sample[:position]]
            other = next((text for text in others if text != exam.findings), None)
            if other is None:
                continue
            h = self.features(exam)
            own, swapped = self.scores(exam, h, exam.findings), self.scores(exam, h, other)
            gaps.append(float(teacher_gap(own, swapped, [len(group) for group in exam.groups])))
        known = [gap for gap in gaps if math.isfinite(gap)]
        return sum(known) / len(known) if known else math.nan
