"""Section 3 of the paper between LLaVA's tower and LLaVA's splice.

`UltraMetaForCausalLM` overrides the two methods through which every LLaVA path goes (training, generate, worker):
frames are encoded and fused (eq. 2), scored (eq. 3), one frame of each redundancy group is kept, the other ``<image>``
tokens leave the prompt, and LLaVA's own splice runs on what remains. So the prompt length does not depend on k.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed
from llava.constants import IGNORE_INDEX
from llava.model.llava_arch import LlavaMetaForCausalLM

from llava_ultra_ext.arguments import ATTENTION_LAYERS, TAUGHT, UltraSettings
from llava_ultra_ext.model.exam_inputs import ExamInputs, FrameChoice
from llava_ultra_ext.model.groups import Group, find_groups, flatten_images, keep_positions, pad_rows
from llava_ultra_ext.model.prompt_text import answers_to_read, questions_to_read
from llava_ultra_ext.model.teacher import attention_scores, likelihood_scores, passes_needed
from llava_ultra_ext.vision.distillation import adr_loss, choice_statistics, teacher_gap
from llava_ultra_ext.vision.sampler import Selection, evidence, gather_frames, select_frames

_thread = threading.local()


class UltraMetaForCausalLM(LlavaMetaForCausalLM):
    """Mixed in before LLaVA's class of a backbone; see `llava_ultra_ext.model.language_model`."""

    warmup: bool = False
    """Set by the trainer: frames are picked at random while the student has not learnt anything yet."""
    measure_gap: bool = False
    """Set by the trainer at logging steps: also score the frames with another exam's findings."""
    scores_from_file: bool = False
    """Set by the trainer: the teacher's scores come with the batch, no teacher runs."""
    last_choices: Sequence[FrameChoice] = ()
    exam_statistics: dict[str, torch.Tensor] | None = None

    @property
    def settings(self) -> UltraSettings:
        """What config.json says of this model."""
        return UltraSettings.from_config(self.config)

    @contextlib.contextmanager
    def exam_inputs(self, inputs: ExamInputs) -> Iterator[ExamInputs]:
        """Hand `ExamInputs` round LLaVA's fixed signatures; per thread, since the worker answers in threads."""
        outer = getattr(_thread, "inputs", None)
        _thread.inputs = inputs
        try:
            yield inputs
        finally:
            _thread.inputs = outer

    def _current_inputs(self) -> ExamInputs:
        return getattr(_thread, "inputs", None) or ExamInputs()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        findings_ids: torch.Tensor | None = None,
        findings_mask: torch.Tensor | None = None,
        frame_scores: torch.Tensor | None = None,
        valid_frames: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """LLaVA's forward; the batch may also hold `ExamInputs`' tensors, and the loss gains ``lambda * L_adr``.

        The first three names are spelt out because Transformers' ``generate`` asks the signature for them.
        """
        exam = ExamInputs(findings_ids, findings_mask, frame_scores, valid_frames)
        with self.exam_inputs(exam):
            output = super().forward(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
            )
        if exam.adr_loss is not None and output.loss is not None:
            self.exam_statistics = {"lm_loss": output.loss.detach(), **exam.statistics}
            output.loss = output.loss + self.settings.adr_loss_weight * exam.adr_loss
        return output

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, images: Any = None, **kwargs: Any) -> Any:
        """LLaVA's generate; `last_choices` says afterwards which frames were chosen.

        Args:
            valid_frames: (N,) bool, for the ``oracle`` baseline.
            streamer: told of the choice where it has a method ``on_choice``, with its heat where ``explain`` is True.
        """
        streamer = kwargs.get("streamer")
        current = ExamInputs(
            valid_frames=kwargs.pop("valid_frames", None),
            explain=getattr(streamer, "explain", False),
            on_choice=getattr(streamer, "on_choice", None),
        )
        with self.exam_inputs(current):
            output = super().generate(inputs, images=images, **kwargs)
        self.last_choices = current.choices()
        return output

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """H_v of frames (N, 3, S, S) -> (N, T, D), eq. 2; features (K, T, D) that are chosen already pass unchanged.

        Frames may be records (N, R) of a feature cache.
        """
        if images.ndim == 3:
            return images
        model = self.get_model()
        features = model.get_vision_tower()(images)
        weight = next(model.mm_projector.parameters())
        # A projector that accelerate keeps in main memory is on "meta" until its own hook moves it.
        place = None if weight.is_meta else weight.device
        return model.mm_projector({kind: f.to(device=place, dtype=weight.dtype) for kind, f in features.items()})

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        labels: torch.Tensor | None,
        images: Any,
        image_sizes: Any = None,
    ) -> tuple[Any, ...]:
        """Choose frames, shorten the prompt to them, then LLaVA's own splice (``llava_arch.py``).

        Raises:
            ValueError: the images of a row do not match its ``<image>`` tokens.
        """
        if images is None or input_ids.shape[1] == 1:
            return super().prepare_inputs_labels_for_multimodal(
                input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes
            )
        frames, per_row = flatten_images(images)
        rows = _real_tokens(input_ids, attention_mask)
        groups = find_groups([row.tolist() for row in rows], set(self.settings.separator_ids), frames.shape[0], per_row)
        h = self.encode_images(frames)
        row_labels = _real_tokens(labels, attention_mask) if labels is not None else None
        current = self._current_inputs()
        current.rows, current.labels = rows, row_labels
        selection = self._choose(h, groups, current)
        features = gather_frames(h, selection.index, selection.weights)
        new_ids, new_mask, new_labels, features = _shorten(rows, row_labels, groups, selection.kept, features)
        mask = None if attention_mask is None and len(rows) == 1 else new_mask
        return super().prepare_inputs_labels_for_multimodal(
            new_ids, None, mask, past_key_values, new_labels, features, image_sizes
        )

    def _choose(self, h: torch.Tensor, groups: Sequence[Group], inputs: ExamInputs) -> Selection:
        """Score the frames (eq. 3), ask the teacher in training (eq. 4), keep K of each group."""
        settings = self.settings
        sizes = [group.frames for group in groups]
        inputs.groups = list(groups)
        # The teacher's knowledge is for w (paper 3.3); through H_v it would pull the projector away from the answer.
        scored = h.detach() if settings.adr_strategy in TAUGHT else h
        scorer, questions = self.get_model().mm_projector.sampler, self._questions(inputs, groups)
        inputs.scores = scores = scorer(scored, questions)
        if inputs.explain:
            inputs.contributions = scorer.contributions(scored, questions)
        teacher = self._teacher_scores(h, groups, inputs, settings) if self.training else None
        taught = teacher if teacher is not None else torch.full_like(scores, math.nan)
        inputs.selection = selection = select_frames(
            scores,
            sizes,
            strategy=settings.adr_strategy,
            top_k=settings.adr_top_k,
            training=self.training,
            warmup=self.warmup,
            select_by=settings.adr_select_by,
            teacher_scores=taught,
            valid=inputs.valid_frames,
            coverage=settings.adr_coverage,
            evidence=self._evidence(h, questions) if settings.adr_coverage and settings.adr_top_k > 1 else None,
        )
        if self.training:
            # Also without a teacher: every rank must walk the same graph, so w always takes part with a zero.
            inputs.adr_loss = adr_loss(taught, scores, sizes, settings.adr_temperature)
            statistics = choice_statistics(teacher, scores, sizes, selection)
            statistics["loss"] = inputs.adr_loss.detach()
            inputs.statistics.update({f"adr_{name}": value for name, value in statistics.items()})
        if inputs.on_choice is not None:
            inputs.on_choice(inputs.choices())
        return selection

    def _teacher_scores(
        self, h: torch.Tensor, groups: Sequence[Group], inputs: ExamInputs, settings: UltraSettings
    ) -> torch.Tensor | None:
        """(N,) teacher scores, NaN where there is none: from the file, or one pass of the LLM a frame (eq. 4)."""
        if settings.adr_strategy not in TAUGHT:
            return None
        if inputs.frame_scores is not None and self.scores_from_file:
            return inputs.frame_scores.to(h.device, torch.float32)
        ids, mask = inputs.findings_ids, inputs.findings_mask
        if settings.adr_teacher_text == "answer":
            ids, mask = answers_to_read(inputs.rows, inputs.labels or ())
        if ids is None or mask is None:
            return None
        scores = self.score_frames(h.detach(), groups, ids, mask)
        if self.measure_gap:
            own, own_mask = ids, mask
            ids, mask = self._other_findings(own, own_mask)
            swapped = self.score_frames(h.detach(), groups, ids, mask)
            sizes = [group.frames for group in groups]
            inputs.statistics["adr_teacher_gap"] = teacher_gap(scores, swapped, sizes, settings.adr_temperature)
        self._previous_findings = (ids, mask) if not self.measure_gap else (own, own_mask)
        return scores

    def _questions(self, inputs: ExamInputs, groups: Sequence[Group]) -> torch.Tensor | None:
        """(N, D) mean embedding of the question of each frame's row; None where the scorer does not ask for it."""
        if not self.settings.adr_question_rank:
            return None
        ids, mask = questions_to_read(inputs.rows, inputs.labels)
        with torch.no_grad():
            embedded = self.get_model().embed_tokens(ids).float()  # one call: under ZeRO-3 a call is a gathering
        mean = (embedded * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        row_of = [group.row for group in groups for _ in range(group.frames)]
        return mean[torch.tensor(row_of, device=mean.device)]

    def _evidence(self, h: torch.Tensor, questions: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            return evidence(h, self.get_model().mm_projector.sampler.contributions(h, questions))

    def _other_findings(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Findings of another exam for each row: the next row's, for a batch of one the previous batch's.

        Where that is the same text (two questions about one exam) the row counts as having none.
        """
        previous = getattr(self, "_previous_findings", None)
        if ids.shape[0] > 1:
            other, other_mask = ids.roll(1, 0), mask.roll(1, 0)
        elif previous is not None:
            other, other_mask = previous[0][-1:].to(ids.device), previous[1][-1:].to(ids.device)
        else:
            return ids, torch.zeros_like(mask)
        if other.shape == ids.shape:
            unlike = (other.where(other_mask, -1) != ids.where(mask, -1)).any(dim=1, keepdim=True)
            other_mask = other_mask & unlike
        return other, other_mask

    @torch.no_grad()
    def score_frames(
        self, h: torch.Tensor, groups: Sequence[Group], findings_ids: torch.Tensor, findings_mask: torch.Tensor
    ) -> torch.Tensor:
        """Teacher score of every frame that has rivals and findings, NaN elsewhere.

        Args:
            h: (N, T, D) projected frames.
            findings_ids: (E, F), findings_mask: (E, F) bool.

        Returns:
            (N,) float32.
        """
        settings, start = self.settings, 0
        row_of: list[int] = []
        index: list[int] = []
        has_findings = findings_mask.any(dim=1).tolist()
        for group in groups:
            if group.frames > 1 and has_findings[group.row]:
                index.extend(range(start, start + group.frames))
                row_of.extend([group.row] * group.frames)
            start += group.frames
        scores = torch.full((h.shape[0],), math.nan, device=h.device)
        rounds = self._rounds(passes_needed(len(index), settings.encoder_batch_size), h.device)
        if rounds == 0:
            return scores
        places = torch.tensor(index, dtype=torch.long, device=h.device)
        exam_of_frame = torch.tensor(row_of, dtype=torch.long, device=h.device)
        text = (findings_ids, findings_mask, exam_of_frame)
        passes: dict[str, Any] = {"batch_size": settings.encoder_batch_size, "rounds": rounds}
        if settings.adr_strategy == "attention":
            passes["layers"] = settings.adr_layers or ATTENTION_LAYERS
            found = attention_scores(self.get_model(), h[places], *text, **passes)
        else:
            passes.update(layers=settings.adr_layers, bos_token_id=self.config.bos_token_id)
            found = likelihood_scores(self.get_model(), self.lm_head, h[places], *text, **passes)
        return scores.index_copy(0, places, found.float())

    def _rounds(self, own: int, device: torch.device) -> int:
        """Passes that every rank runs: under ZeRO-3 each layer is gathered by all ranks together (LLaVA#699)."""
        partitioned = hasattr(self.lm_head.weight, "ds_id")
        if not (partitioned and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
            return own
        rounds = torch.tensor(own, device=device)
        torch.distributed.all_reduce(rounds, op=torch.distributed.ReduceOp.MAX)
        return int(rounds)


def _real_tokens(ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Rows without their padding."""
    if attention_mask is None:
        return list(ids)
    return [row[mask] for row, mask in zip(ids, attention_mask.bool(), strict=True)]


def _shorten(
    rows: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor] | None,
    groups: Sequence[Group],
    kept: Sequence[int],
    features: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Drop the ``<image>`` tokens that lost, and give LLaVA's splice one feature slot for each that stays.

    LLaVA's splice takes one slot for a row without images too; a text-only row that brought no picture lends one.
    """
    new_ids: list[torch.Tensor] = []
    new_labels: list[torch.Tensor] = []
    slots: list[int] = []
    start_of = [0]
    for count in kept:
        start_of.append(start_of[-1] + count)
    for row, ids in enumerate(rows):
        own = [i for i, group in enumerate(groups) if group.row == row]
        places = keep_positions(ids.tolist(), [groups[i] for i in own], [kept[i] for i in own])
        index = torch.tensor(places, device=ids.device)
        new_ids.append(ids[index])
        if labels is not None:
            new_labels.append(labels[row][index])
        for i in own:
            slots.extend(range(start_of[i], start_of[i] + kept[i]))
        if not own:
            slots.append(0)
    padded, mask = pad_rows(new_ids, 0)
    padded_labels = pad_rows(new_labels, IGNORE_INDEX)[0] if labels is not None else None
    if slots != list(range(features.shape[0])):
        features = features[torch.tensor(slots, device=features.device)]
    return padded, mask, padded_labels, features
