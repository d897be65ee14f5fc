"""The sampler's whole course on easy phantom exams, small enough for a test: encoders, stage 1, teacher, stage 2.

Every part is the package's own; only sizes are small. The findings are one word, the lesion's echo, so that a language
model of two layers learns in seconds what a frame has to do with them. Distractors stay: a vessel is as black as a
cyst, so that what strikes the eye is not what the findings say.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import tiny_models
from llava_ultra_ext.data.sources.phantom import words
from llava_ultra_ext.data.sources.phantom.bmode import render_frame
from llava_ultra_ext.data.sources.phantom.case import Case
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings, draw_case
from llava_ultra_ext.model.dispatch import TrainingDispatch
from llava_ultra_ext.model.exam_inputs import ExamInputs
from llava_ultra_ext.model.groups import IMAGE_TOKEN_INDEX, Group
from llava_ultra_ext.train.program import extended_arguments
from pretraining_frames import masks_of
from train_sam import train_sam

K = 6
"""Frames of an exam."""

SIZE = 96
"""Side of a frame in pixels: SAM sees 6x6 cells, four of which make one of the 3x3 tokens."""

PHANTOM = PhantomSettings(
    size=SIZE,
    min_frames=K,
    max_frames=K,
    normal=0.0,
    two_lesions=0.0,
    stray_exams=0.0,
    doppler_exams=0.0,
    sites=("liver",),
    lesion_scale=1.5,
    easy=True,
)


@dataclass(frozen=True)
class Course:
    """How much is learnt.

    Args:
        exams, held_out: exams to learn from and to be judged on.
        sam_exams, sam_steps: SAM's training on tissue levels, which knows neither texts nor valid frames.
        stage1_steps, stage1_batch: random frames with their exams' findings.
        stage2_steps, stage2_batch: exams.
        seed: of exams, weights and orders.
    """

    exams: int = 150
    held_out: int = 60
    sam_exams: int = 60
    sam_steps: int = 100
    stage1_steps: int = 400
    stage1_batch: int = 16
    stage2_steps: int = 80
    stage2_batch: int = 16
    seed: int = 0


class Remembered:
    """The frozen tower's features, computed once; a "picture" is the number of a frame."""

    def __init__(self, features: Mapping[str, Tensor]) -> None:
        self.features = features

    def __call__(self, numbers: Tensor) -> dict[str, Tensor]:
        return {kind: feature[numbers.flatten()] for kind, feature in self.features.items()}


class Learner:
    """A model of ours, the exams that it learns from, and those that it is judged on.

    Args:
        course: how much of all.
        folder: where the small models are written.
    """

    def __init__(self, course: Course, folder: Path) -> None:
        self.course = course
        count, first = course.exams + course.held_out, 1000 * course.seed
        cases = [draw_case(f"EASY-{number}", first + number, PHANTOM) for number in range(count)]
        self.findings = [words.answer("echo", case.lesions[0], case.site) for case in cases]
        self.valid = torch.zeros(count, K, dtype=torch.bool)
        for number, case in enumerate(cases):
            self.valid[number, list(case.valid_frames(PHANTOM.least_visible))] = True
        self.training = range(course.exams)
        self.held_out = range(course.exams, count)
        pixels = np.stack([render_frame(case, place, SIZE) for case in cases for place in range(K)])
        torch.manual_seed(course.seed)
        self.model, self.tokenizer = _model(folder, self.findings, _encoders(folder, cases, pixels, course), course)
        self._ids = {text: self.tokenizer(text, add_special_tokens=False).input_ids for text in self.findings}
        tower = self.model.get_model().get_vision_tower()
        self.model.get_model().vision_tower = Remembered(tower(torch.from_numpy(pixels).permute(0, 3, 1, 2)))

    def stage1(self) -> float:
        """Projector and language model: a random frame, then the findings. Returns the mean of the last losses."""
        draw, losses = random.Random(self.course.seed), []
        optimizer, schedule = self._optimizer(3e-3, self.course.stage1_steps)
        for _ in range(self.course.stage1_steps):
            exams = draw.choices(self.training, k=self.course.stage1_batch)
            frames = torch.tensor([K * exam + draw.randrange(K) for exam in exams]).view(-1, 1, 1, 1)
            loss = self.model.train()(images=frames, **self._rows(exams, frames=1)).loss
            _step(self.model, loss, optimizer, schedule)
            losses.append(float(loss.detach()))
        return sum(losses[-20:]) / 20

    @torch.no_grad()
    def teacher_scores(self, findings: Sequence[str]) -> Tensor:
        """(training exams, K): the likelihood of a text for each training exam, in each of its frames."""
        model, scores = self.model.eval(), []
        for part in _parts(self.training):
            groups = [Group(row, tuple(range(1, K + 1)), K) for row in range(len(part))]
            ids = [torch.tensor(self._ids[findings[exam]]) for exam in part]
            mask = _padded([torch.ones_like(row) for row in ids], 0).bool()
            scores.append(model.score_frames(model.encode_images(_frames(part)), groups, _padded(ids, 0), mask))
        return torch.cat(scores).view(-1, K)

    def stage2(self, scores: Tensor) -> None:
        """Everything learns, the scorer from the teacher's scores (E, K); the student picks after a random warm-up."""
        model, draw = self.model, random.Random(self.course.seed)
        optimizer, schedule = self._optimizer(1e-3, self.course.stage2_steps)
        model.scores_from_file = True
        for step in range(self.course.stage2_steps):
            model.warmup = step < model.settings.adr_warmup * self.course.stage2_steps
            exams = draw.choices(self.training, k=self.course.stage2_batch)
            taught = scores[torch.tensor(exams)].flatten()
            output = model.train()(images=_frames(exams), frame_scores=taught, **self._rows(exams, frames=K))
            _step(model, output.loss, optimizer, schedule)

    @torch.no_grad()
    def frame_choice(self) -> float:
        """The share of held-out exams in which the student picks a valid frame, through the model's own selection."""
        model, hits = self.model.eval(), 0
        for part in _parts(self.held_out):
            rows = self._rows(part, frames=K)
            with model.exam_inputs(ExamInputs()) as inputs:
                model.prepare_inputs_labels_for_multimodal(
                    rows["input_ids"], None, rows["attention_mask"], None, None, _frames(part)
                )
            chosen = [choice.frames[0] for choice in inputs.choices()]
            hits += int(self.valid[torch.tensor(part), torch.tensor(chosen)].sum())
        return hits / len(self.held_out)

    def chance(self) -> float:
        """The mean share of valid frames in the held-out exams."""
        return float(self.valid[list(self.held_out)].float().mean())

    def others_findings(self) -> list[str]:
        """For each training exam the findings of another, unlike its own where there are enough of those."""
        order = sorted(self.training, key=lambda exam: self.findings[exam])
        half = len(order) // 2
        other = dict(zip(order, order[half:] + order[:half], strict=True))
        return [self.findings[other[exam]] for exam in self.training]

    def _rows(self, exams: Sequence[int], frames: int) -> dict[str, Tensor]:
        """[BOS; pictures; findings; EOS], the findings labelled, as stage 1's plain template has it."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        heads = [bos, *[IMAGE_TOKEN_INDEX] * frames]
        tails = [[*self._ids[self.findings[exam]], eos] for exam in exams]
        return {
            "input_ids": _padded([torch.tensor(heads + tail) for tail in tails], 0),
            "labels": _padded([torch.tensor([-100] * len(heads) + tail) for tail in tails], -100),
            "attention_mask": _padded([torch.ones(len(heads) + len(tail)) for tail in tails], 0).bool(),
        }

    def _optimizer(self, rate: float, steps: int) -> tuple[Any, Any]:
        """The scorer at 1e-2, all else at `rate`."""
        scorer = list(self.model.get_model().mm_projector.sampler.parameters())
        known = {id(parameter) for parameter in scorer}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in known]
        optimizer = torch.optim.AdamW([{"params": others}, {"params": scorer}], rate, weight_decay=0.01)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate, 1e-2], total_steps=steps, pct_start=0.1)


def _encoders(folder: Path, cases: Sequence[Case], pixels: np.ndarray, course: Course) -> dict[str, Path]:
    """A CLIP with random weights, and a SAM that has learnt to tell empty, dark and bright tissue."""
    clip = tiny_models.make_clip(folder / "clip", image_size=SIZE, patch_size=32, hidden=32, seed=course.seed)
    sam = tiny_models.make_sam(
        folder / "sam",
        image_size=SIZE,
        hidden=48,
        layers=2,
        window=3,
        global_attn=(1,),
        out_channels=32,
        seed=course.seed,
    )
    masks = np.stack([masks_of(case, place, SIZE) for case in cases[: course.sam_exams] for place in range(K)])
    train_sam(sam, (pixels[: len(masks)], masks), course.sam_steps, seed=course.seed)
    return {"clip": clip, "sam": sam}


def _model(folder: Path, texts: Sequence[str], encoders: Mapping[str, Path], course: Course) -> tuple[Any, Any]:
    """A LLaMA of two layers with our tower and projector, joined as LLaVA's ``train()`` does."""
    from transformers import AutoTokenizer

    base = str(tiny_models.make_llama(folder / "llama", sorted(set(texts)), layers=2, seed=course.seed))
    names = extended_arguments(importlib.import_module("llava.train.train"))
    args = names["ModelArguments"](
        model_name_or_path=base,
        vision_tower="fused:" + ",".join(f"{kind}={source}" for kind, source in encoders.items()),
        mm_vision_select_layer=-2,
        mm_use_im_patch_token=False,
        encoder_batch_size=32,
    )
    model = TrainingDispatch().from_pretrained(base, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(base, use_fast=False)
    model.get_model().initialize_vision_modules(args)
    model.config.mm_use_im_start_end = model.config.mm_use_im_patch_token = False
    model.config.tokenizer_padding_side, model.config.tokenizer_model_max_length = "right", 64
    model.initialize_vision_tokenizer(args, tokenizer=tokenizer)
    return model, tokenizer


def _step(model: Any, loss: Tensor, optimizer: Any, schedule: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def _frames(exams: Sequence[int]) -> Tensor:
    """(E * K, 1, 1, 1): the numbers of all frames of some exams, which `Remembered` takes for pictures."""
    return torch.tensor([K * exam + place for exam in exams for place in range(K)]).view(-1, 1, 1, 1)


def _parts(exams: range, size: int = 32) -> list[range]:
    return [exams[start : start + size] for start in range(0, len(exams), size)]


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)
