"""What a batch of exams carries beside LLaVA's own inputs, and which frames were chosen of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from llava_ultra_ext.model.groups import Group
from llava_ultra_ext.vision.sampler import Selection


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of one redundancy group entered the LLM.

    Args:
        row: row of the batch.
        frames: indices within the group, in order.
        scores: s_fea of every frame of the group (eq. 3).
        heat: for each chosen frame what its T tokens add to its score, less the mean over the group's frames, which
            decides nothing; their sum is the score less the mean score. Empty unless `ExamInputs.explain` asked for it.
    """

    row: int
    frames: list[int]
    scores: list[float]
    heat: list[list[float]] = field(default_factory=list)


@dataclass
class ExamInputs:
    """What a batch of exams carries beside LLaVA's own inputs, and what became of it; one per forward pass.

    Args:
        findings_ids: (E, F) token ids of the findings, for the teacher only.
        findings_mask: (E, F) bool.
        frame_scores: (N,) teacher scores from a file, NaN where unknown.
        valid_frames: (N,) bool, for the ``oracle`` baseline.
        explain: whether the choices shall say where in the frames their scores come from.
        rows: the batch's token ids without padding, and in training their labels; set by the model.
    """

    findings_ids: torch.Tensor | None = None
    findings_mask: torch.Tensor | None = None
    frame_scores: torch.Tensor | None = None
    valid_frames: torch.Tensor | None = None
    explain: bool = False
    rows: Sequence[torch.Tensor] = ()
    labels: Sequence[torch.Tensor] | None = None
    adr_loss: torch.Tensor | None = None
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    selection: Selection | None = None
    scores: torch.Tensor | None = None
    contributions: torch.Tensor | None = None
    on_choice: Callable[[list[FrameChoice]], None] | None = None

    def choices(self) -> list[FrameChoice]:
        """The choice in each redundancy group, in reading order (moves a few numbers to the host)."""
        if self.selection is None or self.scores is None:
            return []
        index, scores = self.selection.index.tolist(), self.scores.float().tolist()
        found, start, first = [], 0, 0
        for group, kept in zip(self.groups, self.selection.kept, strict=True):
            if group.positions:
                own = slice(start, start + group.frames)
                frames = [i - start for i in index[first : first + kept]]
                found.append(FrameChoice(group.row, frames, scores[own], self._heat(own, frames)))
            start, first = start + group.frames, first + kept
        return found

    def _heat(self, group: slice, frames: list[int]) -> list[list[float]]:
        if self.contributions is None:
            return []
        parts = self.contributions[group].float()  # (k, T)
        heat: list[list[float]] = (parts - parts.mean(0))[frames].tolist()
        return heat
