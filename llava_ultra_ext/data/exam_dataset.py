"""Samples and batches for LLaVA's trainer (in the place of LLaVA's ``LazySupervisedDataset`` and its collator)."""

from __future__ import annotations

import logging
import math
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from llava_ultra_ext.data.cached_frames import read_frames
from llava_ultra_ext.data.exam import IMAGE_TOKEN, BadSample, Exam
from llava_ultra_ext.data.pictures import open_picture
from llava_ultra_ext.data.tokenize import (
    IGNORE_INDEX,
    Encoded,
    Template,
    UntrainableText,
    end_marker,
    tokenize_turns,
    truncate,
)

if TYPE_CHECKING:
    from llava_ultra_ext.vision.feature_cache import FeatureCache

logger = logging.getLogger(__name__)

Sample = dict[str, torch.Tensor]

# CJK radicals to ideographs (with kana and CJK punctuation), hangul, compatibility and full-width forms, extensions.
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


def text_length(text: str) -> int:
    """How long a text is for grouping by length: each CJK character counts 1, and each other word 1.

    LLaVA counts words between white space, for which a Chinese paragraph is as long as "yes".
    """
    return len(_CJK.findall(text)) + len(_CJK.sub(" ", text.replace(IMAGE_TOKEN, " ")).split())


def single_frames(exam: Exam) -> list[Exam]:
    """An exam as previous works saw it: its text with each frame alone (strategy ``none``).

    Sample i holds frame i of every redundancy group, or the last frame of a shorter one.
    """
    longest = max((len(group) for group in exam.groups), default=0)
    if longest <= 1:
        return [exam]
    return [exam.keep_frames([group[min(index, len(group) - 1)] for group in exam.groups]) for index in range(longest)]


def limit_frames(exam: Exam, max_frames: int | None, seed: int) -> Exam:
    """A uniform random subset of an exam's frames, the same in every epoch and process; no group loses all its frames.

    Args:
        exam: k frames.
        max_frames: how many to keep; an exam with more groups than that keeps one frame of each.
        seed: of the choice, together with the exam's score key: all questions about an exam see the same frames.
    """
    if max_frames is None or len(exam.images) <= max_frames:
        return exam
    dice = random.Random(f"{seed}/{exam.score_key}")
    kept = [dice.choice(group) for group in exam.groups]
    others = [index for index in range(len(exam.images)) if index not in kept]
    return exam.keep_frames(kept + dice.sample(others, max(0, max_frames - len(kept))))


class ExamDataset(Dataset[Sample]):
    """Exams as tensors.

    Args:
        exams: checked exams (`manifest.load_manifest`).
        tokenizer: the language model's; its `model_max_length` limits a sample after the pictures are spliced in.
        template: LLaVA's conversation of ``--version``.
        image_folder: where picture paths start.
        image_processor: LLaVA's contract: ``preprocess(list, return_tensors="pt")["pixel_values"]`` and ``crop_size``.
        frame_tokens: T, tokens that one frame brings into the language model.
        strategy: ``--adr_strategy``. With ``none``, an exam of k frames becomes k samples of one frame.
        top_k: ``--adr_top_k``, frames kept of a group.
        max_frames: ``--max_frames``.
        seed: of the choice under `max_frames`.
        frame_scores: score key -> picture name -> teacher score (`frame_scores.read_frame_scores`).
        findings_max_length: findings tokens that the teacher reads; the rest is cut.
        on_bad_sample: ``error`` raises `BadSample`; ``skip`` gives the next good sample instead.
        feature_cache: ``--feature_cache``: records of frames are read from it, pictures are not decoded.
    """

    def __init__(
        self,
        exams: Sequence[Exam],
        *,
        tokenizer: Any,
        template: Template,
        image_folder: str,
        image_processor: Any,
        frame_tokens: int,
        strategy: str = "none",
        top_k: int = 1,
        max_frames: int | None = None,
        seed: int = 0,
        frame_scores: Mapping[str, Mapping[str, float]] | None = None,
        findings_max_length: int = 512,
        on_bad_sample: str = "error",
        feature_cache: FeatureCache | None = None,
    ) -> None:
        limited = (limit_frames(exam, max_frames, seed) for exam in exams)
        self.exams = [one for exam in limited for one in (single_frames(exam) if strategy == "none" else [exam])]
        self.replaced: dict[str, str] = {}
        """Sample id -> reason of the samples that this process replaced under ``skip``."""
        self.has_frame_scores = bool(frame_scores)
        self._tokenizer = tokenizer
        self._template = template
        self._image_folder = image_folder
        self._image_processor = image_processor
        self._frame_tokens = frame_tokens
        self._kept_frames = math.inf if strategy == "all" else top_k
        self._frame_scores = frame_scores or {}
        self._findings_max_length = findings_max_length
        self._skips = on_bad_sample == "skip"
        self._cut = False
        self._feature_cache = feature_cache
        self._check_template()

    def _check_template(self) -> None:
        if "mmtag" in self._template.version:
            raise ValueError(
                f"--version {self._template.version}: templates that put <image> into tags do not work with exams. "
                "Use v1, llava_llama_2, plain or one of the ultra_… templates."
            )
        marker = end_marker(self._template)
        if len(self._tokenizer(marker, add_special_tokens=False).input_ids) > 1 and marker.startswith("<"):
            logger.warning(
                "The tokenizer splits the end marker %s into several tokens: generation that stops at the "
                "end-of-sequence token alone will not stop there. Use a template that ends with %s.",
                marker,
                self._tokenizer.eos_token,
            )

    def __len__(self) -> int:
        return len(self.exams)

    @property
    def lengths(self) -> list[int]:
        """How long each sample is (LLaVA's ``lengths``): its text, and the picture tokens that enter the LLM."""
        return [
            max(1, sum(text_length(turn.text) for turn in exam.conversations) + sum(self._group_tokens(exam)))
            for exam in self.exams
        ]

    @property
    def modality_lengths(self) -> list[int]:
        """`lengths`, negative for a text-only sample, as LLaVA's grouping by modality wants it; never 0."""
        return [length if exam.images else -length for exam, length in zip(self.exams, self.lengths, strict=True)]

    def _group_tokens(self, exam: Exam) -> list[int]:
        return [int(min(self._kept_frames, len(group))) * self._frame_tokens for group in exam.groups]

    def unfit(self) -> list[BadSample]:
        """Samples that the template cannot hold, or that are too long for the model, to be known before training.

        Only those that might be are tokenized: a text has at most as many tokens as UTF-8 bytes.
        """
        found: dict[str, BadSample] = {}
        marks = 64  # bytes round a turn: more than any role with its separators
        for exam in self.exams:
            longest = sum(len(turn.text.encode()) + marks for turn in exam.conversations)
            longest += len(self._template.copy().get_prompt().encode()) + sum(self._group_tokens(exam))
            if longest > self._tokenizer.model_max_length or self._template.sep_style.name == "PLAIN":
                try:
                    self._encode(exam)
                except BadSample as fault:
                    found.setdefault(exam.id, fault)
        return list(found.values())

    def __getitem__(self, index: int) -> Sample:
        """One sample.

        Returns:
            input_ids (L,), labels (L,), images uint8 (k, 3, S, S) or records (k, R), findings_ids (F,),
            frame_scores (k,) float32 with NaN where unknown, valid_frames (k,) bool. A text-only sample has one black
            picture, or a record of zeros.

        Raises:
            BadSample: it cannot be used, under ``error``; or no sample can, under ``skip``.
            NotCached: a picture was changed after the feature cache was built.
        """
        index = range(len(self))[index]  # A negative index counts from the end, one past the end is an IndexError.
        for step in range(len(self)):
            exam = self.exams[(index + step) % len(self)]
            try:
                return self._sample(exam)
            except BadSample as fault:
                if not self._skips or step == len(self) - 1:
                    raise
                if exam.id not in self.replaced:
                    logger.warning("%s It is replaced by the next sample (%d so far).", fault, len(self.replaced) + 1)
                self.replaced[exam.id] = fault.reason
        raise AssertionError("range() of a non-empty dataset is not empty")

    def _sample(self, exam: Exam) -> Sample:
        encoded = self._encode(exam)
        known = self._frame_scores.get(exam.score_key, {})
        valid = exam.valid_frames or ()
        frames = range(max(1, len(exam.images)))
        names = exam.images or ("",)
        findings = self._tokenizer(exam.findings, add_special_tokens=False).input_ids if exam.findings else []
        return {
            "input_ids": torch.tensor(encoded.input_ids, dtype=torch.long),
            "labels": torch.tensor(encoded.labels, dtype=torch.long),
            "images": self._pixels(exam),
            "findings_ids": torch.tensor(findings[: self._findings_max_length], dtype=torch.long),
            "frame_scores": torch.tensor([known.get(name, math.nan) for name in names], dtype=torch.float32),
            "valid_frames": torch.tensor([frame in valid for frame in frames], dtype=torch.bool),
        }

    def _encode(self, exam: Exam) -> Encoded:
        try:
            whole = tokenize_turns(exam.conversations, self._template, self._tokenizer)
            encoded = truncate(whole, self._tokenizer.model_max_length, self._group_tokens(exam))
        except UntrainableText as error:
            raise BadSample(exam.id, error.reason, str(error)) from None
        if encoded is not whole and not self._cut:
            self._cut = True
            logger.warning("sample %s is longer than --model_max_length: its end is cut. Said once.", exam.id)
        return encoded

    def _pixels(self, exam: Exam) -> torch.Tensor:
        if self._feature_cache is not None:
            return read_frames(self._feature_cache, f"sample {exam.id}", exam.images, self._image_folder)
        if not exam.images:
            size = self._image_processor.crop_size
            return torch.zeros(1, 3, size["height"], size["width"], dtype=torch.uint8)
        pictures = []
        for number, name in enumerate(exam.images, start=1):
            try:
                pictures.append(open_picture(os.path.join(self._image_folder, name)))
            except OSError as error:
                raise BadSample(
                    exam.id, "undecodable_picture", f"picture {number} of {len(exam.images)} {error}. Export it again."
                ) from None
        try:
            pixels: torch.Tensor = self._image_processor.preprocess(pictures, return_tensors="pt")["pixel_values"]
        except ValueError as error:
            raise BadSample(exam.id, "unusable_picture", f"one of its pictures: {error}") from None
        return pixels


@dataclass(frozen=True)
class ExamCollator:
    """Puts samples into one batch, padded on the right.

    Args:
        pad_token_id: the tokenizer's.
    """

    pad_token_id: int

    def __call__(self, samples: Sequence[Sample]) -> Sample:
        """E samples with N frames together.

        Returns:
            input_ids, labels, attention_mask (E, L); images uint8 (N, 3, S, S) or records (N, R), frame_scores (N,),
            valid_frames (N,), the frames of all rows in order; findings_ids, findings_mask (E, F) with F at least 1.
        """
        ids = [sample["input_ids"] for sample in samples]
        # One column at least: the teacher's code need not know batches in which nobody has findings.
        findings = [sample["findings_ids"] for sample in samples]
        findings_ids = self._pad(findings, self.pad_token_id, at_least=1)
        findings_mask = self._pad([torch.ones_like(row) for row in findings], 0, at_least=1).bool()
        return {
            "input_ids": self._pad(ids, self.pad_token_id),
            "labels": self._pad([sample["labels"] for sample in samples], IGNORE_INDEX),
            # By length and not by `!= pad`: LLaVA pads with <unk>, which a text may hold.
            "attention_mask": self._pad([torch.ones_like(row) for row in ids], 0).bool(),
            "images": torch.cat([sample["images"] for sample in samples]),
            "findings_ids": findings_ids,
            "findings_mask": findings_mask,
            "frame_scores": torch.cat([sample["frame_scores"] for sample in samples]),
            "valid_frames": torch.cat([sample["valid_frames"] for sample in samples]),
        }

    @staticmethod
    def _pad(rows: Sequence[torch.Tensor], value: int, at_least: int = 0) -> torch.Tensor:
        padded = pad_sequence(list(rows), batch_first=True, padding_value=value)
        missing = max(0, at_least - padded.shape[1])
        return torch.nn.functional.pad(padded, (0, missing), value=value)
